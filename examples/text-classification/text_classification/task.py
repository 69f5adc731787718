"""The model, made from a config, and the sentences, made by code: nothing is downloaded."""

import numpy as np
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification

TOPICS = {
    "sea": "wave salt tide harbour sail gull anchor shore reef whale",
    "mountain": "peak snow ridge glacier climb rope valley cliff hut goat",
    "kitchen": "pan oven flour butter knife stew spoon oil dough pepper",
    "music": "violin chord drum melody choir tempo flute song stage bass",
}
FILLERS = "the a and of in with we saw then under over one two old new while before after near far"
WORDS = [word for words in (*TOPICS.values(), FILLERS) for word in words.split()]
ID = {word: index for index, word in enumerate(["[CLS]", *WORDS])}
LENGTH = 12  # words in a sentence, two of which belong to its topic
RANK = 16  # of the global adapter: at least the clients' ranks together, so that no part of their mean is cut


def sentences(count: int, seed: int, topics: list[int] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (count, 1 + LENGTH) and topics (count,): two words of the topic among fillers, all in random order."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(TOPICS) if topics is None else topics, count)
    lists = [words.split() for words in TOPICS.values()]
    rows = []
    for label in labels:
        words = [*rng.choice(lists[label], 2), *rng.choice(FILLERS.split(), LENGTH - 2)]
        rows.append([ID["[CLS]"], *(ID[word] for word in rng.permutation(words))])
    return torch.tensor(rows), torch.tensor(labels)


def lora_config(rank: int) -> LoraConfig:
    """LoRA on the attention; the classifier head is trained as a whole."""
    return LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=rank,
        lora_alpha=16,
        target_modules=["query", "key", "value", "attention.output.dense"],
        modules_to_save=["classifier"],
    )


def build_model(rank: int) -> PeftModel:
    """A transformer of two layers, the same on every node, with a LoRA adapter of `rank`."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(ID), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=LENGTH + 1, num_labels=len(TOPICS), initializer_range=0.2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return get_peft_model(BertForSequenceClassification(config), lora_config(rank))


def train(model: PeftModel, ids: torch.Tensor, labels: torch.Tensor, steps: int, lr: float, seed: int) -> float:
    """Train the adapter and the head on batches of 32; returns the mean loss."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=lr)
    total = 0.0
    model.train()
    for _ in range(steps):
        batch = torch.randint(len(ids), (32,), generator=generator)
        loss = cross_entropy(model(input_ids=ids[batch]).logits, labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        total += loss.item() / steps
    return total


@torch.no_grad()
def accuracy(model: PeftModel, ids: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of the sentences whose topic is told right."""
    model.eval()
    return float((model(input_ids=ids).logits.argmax(1) == labels).float().mean())
