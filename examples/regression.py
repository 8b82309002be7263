"""Regression with error bars: what each method says where it has seen no data.

The ensemble widens in the gap; MAP cannot, and mean-field around one network hardly does.
"""

import torch
from torch import nn

import bayesify
from bayesify.data.readers.toy import sinc

x, y = sinc(200, noise=0.05, generator=torch.Generator().manual_seed(0))
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(1, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 1))

train = bayesify.MAP(epochs=150, lr=1e-2)
methods = {
    "MAP": train,
    "ensemble of 5": bayesify.Ensemble(members=5, epochs=150, lr=1e-2),
    "mean-field VI": bayesify.MeanFieldVI(pretrain=train, epochs=100),
}
places = {
    "among the data": x[:5],
    "in the gap": torch.tensor([[0.0]]),
    "outside": x.max()[None, None] + 3,
}
for name, method in methods.items():
    posterior = bayesify.fit(net, (x, y), method, likelihood="gaussian")
    for place, where in places.items():
        predictive = posterior.predict(where, num_samples=100)
        noise, weights = predictive.aleatoric.sqrt().mean(), predictive.epistemic.sqrt().mean()
        print(f"{name:14} {place:15} sd of the noise {noise:.3f}, from the weights {weights:.3f}")
