"""PyTorch's optimizers in accelerate, Lightning, a Hugging Face Trainer, torch.compile, over processes.

Each trains as a plain loop does, to the last bit, and goes on where it was saved.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import generated.torch as package  # noqa: E402

BATCHES = [torch.randn(8, 6, generator=torch.Generator().manual_seed(i)) for i in range(4)]
ROWS = torch.cat(BATCHES)


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5))


def loss_of(network, x):
    return network(x).square().mean()


def plain(epochs=1):
    """The model after a plain loop, at a rate that follows a schedule of ours."""
    network = model()
    optimizer, schedule = made(network)
    for x in BATCHES * epochs:
        optimizer.zero_grad()
        loss_of(network, x).backward()
        optimizer.step()
        schedule.step()
    return network


def made(network):
    optimizer = package.AdamW(network.parameters(), lr=1e-2)
    return optimizer, package.create("cosine", optimizer, total=20)


def assert_same(network, other):
    assert all(map(torch.equal, network.parameters(), other.parameters()))


def test_accelerate(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    network = model()
    network, optimizer, schedule = accelerator.prepare(network, *made(network))
    for i, x in enumerate(BATCHES * 2):
        if i == 5:
            accelerator.save_state(tmp_path)
            for p in network.parameters():
                p.data.zero_()
            optimizer.state.clear()
            accelerator.load_state(tmp_path)
        optimizer.zero_grad()
        accelerator.backward(loss_of(network, x))
        accelerator.clip_grad_norm_(network.parameters(), 1e9)
        optimizer.step()
        schedule.step()
    assert_same(network, plain(epochs=2))


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = model()

        def training_step(self, batch, _):
            return loss_of(self.network, batch)

        def configure_optimizers(self):
            optimizer, schedule = made(self.network)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def fitted(epochs, **options):
        quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", default_root_dir=tmp_path, **dict.fromkeys(quiet, False)
        )
        module = Module()
        trainer.fit(module, torch.utils.data.DataLoader(ROWS, batch_size=8), **options)
        return module, trainer

    module, trainer = fitted(1)
    assert_same(module.network, plain())
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    assert_same(fitted(2, ckpt_path=tmp_path / "first.ckpt")[0].network, plain(epochs=2))


def test_hugging_face_trainer(tmp_path):
    transformers = pytest.importorskip("transformers")

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = model()

        def forward(self, x):
            return {"loss": loss_of(self.network, x)}

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(rows)

    rows = [{"x": row} for row in ROWS]
    options = transformers.TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=8,
        num_train_epochs=2,
        use_cpu=True,
        report_to=[],
        save_strategy="steps",
        save_steps=3,
        logging_strategy="no",
        max_grad_norm=0.0,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    for begun in (None, str(tmp_path / "checkpoint-3")):
        network = Network()
        trainer = InOrder(model=network, args=options, train_dataset=rows, optimizers=made(network))
        trainer.train(resume_from_checkpoint=begun)
        assert_same(network.network, plain(epochs=2))


def test_a_compiled_training_step():
    """The step inside is the one outside: a graph break, and nothing is compiled anew for another t."""

    def trained(inside):
        torch._dynamo.reset()
        network = model()
        optimizer, schedule = made(network)

        def step(x):
            loss = loss_of(network, x)
            loss.backward()
            if inside:
                optimizer.step()
                optimizer.zero_grad()
            return loss

        compiled = torch.compile(step)
        for x in BATCHES:
            compiled(x)
            if not inside:
                optimizer.step()
                optimizer.zero_grad()
            schedule.step()
        return network

    assert_same(trained(inside=True), trained(inside=False))


def test_shards_and_copies():
    """Two processes: `fully_shard`, DistributedDataParallel and torch.distributed.checkpoint.

    One algorithm of each kind; `PYTHONPATH=. python tests/sharded.py` has them all.
    """
    names = ("sgd", "lamb", "adafactor", "muon", "schedule_free_adamw", "adamw_sam")
    ran = subprocess.run(
        [sys.executable, Path(__file__).with_name("sharded.py"), *names],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    refusal, done = ran.stdout.splitlines()
    assert 'is a DTensor; states="8bit" is for plain tensors of real numbers.' in refusal
    assert done == "done"
