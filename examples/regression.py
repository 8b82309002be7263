"""Regression with error bars that widen where there were no data."""

import torch
from torch import nn

import bayesify
from bayesify.data.toy import sinc

x, y = sinc(200, noise=0.05, generator=torch.Generator().manual_seed(0))
net = nn.Sequential(nn.Linear(1, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 1))

method = bayesify.MeanFieldVI(pretrain=bayesify.MAP(epochs=300, lr=1e-2), epochs=200)
posterior = bayesify.fit(net, (x, y), method, likelihood="gaussian")

grid = torch.linspace(float(x.min()) - 2, float(x.max()) + 2, 9)[:, None]
predictive = posterior.predict(grid, num_samples=100)
low, high = predictive.quantile(0.05), predictive.quantile(0.95)
for row in torch.cat([grid, predictive.mean, low, high, predictive.epistemic.sqrt()], 1).tolist():
    print("x {:6.2f}   mean {:6.3f}   90% [{:6.3f}, {:6.3f}]   from the weights {:.3f}".format(*row))
