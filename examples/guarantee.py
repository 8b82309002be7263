"""A guarantee on the error of a Bayesian network, and what it costs to have one.

Half of the training data are kept from the network; they train its Gaussian first layer, and
certify it: a PAC-Bayes bound on how often a random network of the posterior is wrong.
"""

import bayesify
from bayesify.evaluation.guarantees.certificates import sampled_risk

digits = bayesify.data.splits("digits")
net = bayesify.models.build("mlp", digits.input_shape, digits.num_outputs, seed=0)
trained = bayesify.MAP(epochs=40)

half = bayesify.STF(pretrain=trained, epochs=20, temperature=1.0, certify_split=0.5)
posterior = bayesify.fit(net, digits.train, half)
print(bayesify.certify(posterior, digits.train))
print(f"Test digits: wrong in {100 * sampled_risk(posterior, digits.test):.1f} % of cases.")

whole = bayesify.fit(net, digits.train, bayesify.STF(pretrain=trained, epochs=20))
for name, each in (("half for the guarantee", posterior), ("all for the network", whole)):
    metrics = bayesify.evaluate(each, digits.test).metrics
    print(f"{name:>22}: accuracy {metrics['accuracy']:.3f}, NLL {metrics['nll']:.3f}")

try:
    bayesify.certify(whole, digits.train)
except bayesify.DataError as error:
    print(f"Refused: {error}")
