"""Train the variational posterior of a network's first layer in a loop of your own."""

import torch
from torch import nn

import bayesify
from bayesify.data.readers.toy import two_moons

torch.manual_seed(0)
x, y = two_moons(400, noise=0.2, generator=torch.Generator().manual_seed(0))
net = nn.Sequential(nn.Linear(2, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 2))

trained = bayesify.fit(net, (x, y), bayesify.MAP(epochs=60, lr=1e-2))
net.load_state_dict(trained.point())
net.requires_grad_(False)

likelihood, prior = bayesify.Categorical(), bayesify.NormalPrior(1.0)
q = bayesify.MeanField.around(net, where=bayesify.first_layer, scale=0.1)
scopes = bayesify.noise_scopes(net, x, q.names)  # noise of each example's own, where it may be
optimiser = torch.optim.Adam(q.parameter_groups(lr=1e-3, scale_lr=3e-2))
for _ in range(300):
    loss = bayesify.negative_elbo(net, q, likelihood, prior, x, y, num_data=len(x), scopes=scopes)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()

posterior = bayesify.WeightPosterior(net, q, likelihood)
here, far = torch.tensor([[0.5, 0.25]]), torch.tensor([[30.0, -30.0]])
for name, place in (("among the data", here), ("far away", far)):
    confidence = posterior.predict(place, num_samples=100).probs.max().item()
    print(f"confidence {name}: {confidence:.2f} (MAP: {trained.predict(place).probs.max():.2f})")
