"""Questions about images: members around a LLaVA, built small from its configuration, on easy-VQA.

    pip install transformers easy-vqa
    python examples/pretrained/vqa.py --questions 40000 --epochs 4    # all of the data
    python examples/pretrained/vqa.py --tokens        # the answer as a token among all words

With published weights the net is `LlavaForConditionalGeneration.from_pretrained(...)`, and its own
processor makes the inputs; the rest stays as it is.
"""

import argparse
import warnings
from collections import Counter, defaultdict

import easy_vqa
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast

import bayesify

PAD, IMAGE, SIDE, PATCH, LONGEST = "<pad>", "<image>", 64, 16, 10
TOKENS = (SIDE // PATCH) ** 2  # that stand for an image
ANSWERS = sorted(easy_vqa.get_answers())
# one operation of LLaVA (masked_scatter) runs member by member under vmap, and torch says so
warnings.filterwarnings("ignore", "There is a performance drop")


def words(question: str) -> list[str]:
    """In lower case, the question mark as a word of its own."""
    return question.lower().replace("?", " ?").split()


class Questions(Dataset[dict[str, Tensor]]):
    """The image's place, then the question, padded on the left so that the answer comes next."""

    def __init__(self, part: str, vocabulary: dict[str, int], count: int, tokens: bool) -> None:
        questions, answers, images = getattr(easy_vqa, f"get_{part}_questions")()
        paths = getattr(easy_vqa, f"get_{part}_image_paths")()  # by number, in no order
        shown = (Image.open(paths[i]).convert("RGB") for i in range(len(paths)))
        pixels = np.stack([np.asarray(each) for each in shown])
        chosen = torch.randperm(len(answers), generator=torch.Generator().manual_seed(0))[:count]
        self.asked = [questions[i] for i in chosen]
        rows = [[IMAGE] * TOKENS + words(question) for question in self.asked]
        rows = [[PAD] * (TOKENS + LONGEST - len(row)) + row for row in rows]
        self.ids = torch.tensor([[vocabulary[word] for word in row] for row in rows])
        self.seen = torch.tensor([[int(word != PAD) for word in row] for row in rows])
        self.labels = torch.tensor([ANSWERS.index(answers[i]) for i in chosen])
        if tokens:
            self.labels = torch.tensor([[vocabulary[answers[i]]] for i in chosen])
        self.pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        self.images, self.flip = torch.tensor(images)[chosen], part == "train"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        """What the net is called with, and the answer."""
        pixels = (self.pixels[self.images[i]] - 230.0) / 50  # mean and deviation: most is bright
        inputs = {"input_ids": self.ids[i], "attention_mask": self.seen[i]}
        flip = self.flip and torch.rand(()) < 0.5
        return inputs | {
            "pixel_values": pixels.flip(-1) if flip else pixels,
            "labels": self.labels[i],
        }


def llava(vocabulary: dict[str, int]) -> LlavaForConditionalGeneration:
    """A CLIP tower of two layers in front of a Llama of two layers."""
    size = {"num_hidden_layers": 2, "num_attention_heads": 4}
    vision = CLIPVisionConfig(
        hidden_size=96, intermediate_size=192, image_size=SIDE, patch_size=PATCH, **size
    )
    text = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        vocab_size=len(vocabulary),
        initializer_range=0.05,
        pad_token_id=vocabulary[PAD],
        use_cache=False,
        **size,
    )
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=vocabulary[IMAGE],
            vision_feature_layer=-1,
        )
    )


parser = argparse.ArgumentParser()
parser.add_argument("--questions", type=int, default=500, help="of each part")
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--tokens", action="store_true", help="likelihood of tokens, not of answers")
parser.add_argument("--out", help="folder to save to")
options = parser.parse_args()
known = {word for question in easy_vqa.get_train_questions()[0] for word in words(question)}
vocabulary = {word: i for i, word in enumerate([PAD, IMAGE, *sorted(known | set(ANSWERS))])}
train, test = (
    Questions(part, vocabulary, options.questions, options.tokens) for part in ("train", "test")
)

counts: dict[str, Counter[int]] = defaultdict(Counter)
for question, label in zip(train.asked, train.labels.flatten().tolist(), strict=True):
    counts[question][label] += 1
blind = torch.tensor([max(counts[each], key=counts[each].get, default=0) for each in test.asked])
print(f"accuracy by the question alone: {(test.labels.flatten() == blind).float().mean():.3f}")

torch.manual_seed(0)
net = llava(vocabulary)
candidates = torch.tensor([vocabulary[answer] for answer in ANSWERS])


def readout(out: LlavaCausalLMOutputWithPast) -> Tensor:
    """Logits of the answers (B, 13); or of all words at the last position, (B, words, 1)."""
    if options.tokens:
        return out.logits[:, -1:].transpose(1, 2)
    return out.logits[:, -1, candidates]


posterior = bayesify.fit(net, train, bayesify.MAP(options.epochs, lr=1e-3), readout=readout)
print("one network", bayesify.evaluate(posterior, test), sep="\n")

net.load_state_dict(posterior.point(), strict=False)
method = bayesify.Bella(
    pretrain=None,
    where=bayesify.matching("*language_model*mlp*.weight"),
    vectors=False,
    members=3,
    epochs=1,
)
posterior = bayesify.fit(net, train, method, readout=readout)
print(f"three members of {posterior.trainable_parameters // 3:,} numbers each")
print(bayesify.evaluate(posterior, test))
if options.out:
    bayesify.save(posterior, options.out)  # `load` takes `llava(vocabulary)` and the readout
