"""CLIP as a classifier of images: what it makes of them against its features of one prompt a class.

The net is built small from a configuration. With published weights it is
`CLIPModel.from_pretrained("openai/clip-vit-base-patch32")`, and its `AutoProcessor` makes the
inputs.
"""

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

import bayesify

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
warnings.filterwarnings("ignore", "There is a performance drop")


class Classifier(nn.Module):
    """The vision part of a CLIP, with the text features of the prompts as its last layer."""

    def __init__(self, clip: CLIPModel, prompts: Tensor) -> None:
        super().__init__()
        self.vision, self.projection = clip.vision_model, clip.visual_projection
        self.scale = clip.logit_scale
        with torch.no_grad():
            text = clip.eval().get_text_features(prompts).pooler_output
        self.register_buffer("text", F.normalize(text, dim=-1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Scaled cosines (B, classes) between images and prompts."""
        image = self.projection(self.vision(pixels).pooler_output)
        return self.scale.exp() * F.normalize(image, dim=-1) @ self.text.T


words = ["<end>", "a", "photo", "of", "the", "digit", *NAMES]
prompts = torch.tensor([[1, 2, 3, 4, 5, words.index(name), 0] for name in NAMES])
size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
size |= {"num_attention_heads": 4}
vision = size | {"image_size": 32, "patch_size": 8}
text = size | {"vocab_size": len(words), "bos_token_id": 1, "eos_token_id": 0}
text |= {"initializer_factor": 10.0}  # keeps the prompts apart, as training would
torch.manual_seed(0)
clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32))
net = Classifier(clip, prompts)

digits = bayesify.data.splits("digits")
parts = (digits.train, digits.test)
(x, y), (x_test, y_test) = (part.batch(torch.arange(len(part))) for part in parts)
x, x_test = (F.interpolate(each, size=32).expand(-1, 3, -1, -1) for each in (x, x_test))
method = bayesify.Bella(
    pretrain=bayesify.MAP(epochs=20, lr=1e-3),  # None for a CLIP that is trained
    where=bayesify.matching("vision.*mlp*.weight"),
    vectors=False,
    members=3,
    epochs=3,
)
posterior = bayesify.fit(net, (x, y), method, batch_size=32)
predictive = posterior.predict(x_test)
accuracy = (predictive.probs.argmax(-1) == y_test).float().mean()
print(f"accuracy {accuracy:.3f}, NLL {-predictive.log_prob(y_test).mean():.3f}")
print(f"numbers learnt by each member: {posterior.trainable_parameters // 3:,}")
