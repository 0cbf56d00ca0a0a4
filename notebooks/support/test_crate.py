"""The crate in real kernels: one set of statics for all cells, and two kernels at once.

    python3 notebooks/support/test_crate.py

In cells that were linked statically (evcxr's way with a plain library) each cell would have its own
candle tensor ids and its own thread pool, and a training that goes on in another cell could add
gradients to the wrong tensors without a word. The crate's dylib prevents it; here that is seen.
"""

import os
import re
import threading
import time
import unittest
from pathlib import Path
from unittest import mock

from test_runner import Run, clean_environment

CRATE = Path(__file__).resolve().parents[2] / "emoji_lab"
USE = f':dep emoji_lab = {{ path = "{CRATE}" }}\nuse emoji_lab::prelude::*;\n'
SETTING_UP = (
    'let base = load_model("embedded", &Device::Cpu)?;\n'
    'let rows = format_chat(&load_dataset("embedded", Task::emoji())?).take(160);'
)


def settings(folder, epochs):
    return (
        f'SftConfig {{ output_dir: "out/{folder}".into(), num_train_epochs: {epochs:.1f}, learning_rate: 2e-3, '
        "logging_strategy: Strategy::Steps(1), eval_strategy: Strategy::No, save_strategy: Strategy::No, "
        "report_to_tensorboard: false, progress_lines: 0, ..Default::default() }"
    )


def trainer(name, epochs):
    parts = "&base, &rows, None, &QuantConfig::default(), Some(&LoraConfig::default())"
    return f"let mut {name} = SftTrainer::new({parts}, &{settings(name, epochs)})?;"


def show_losses(name):
    """Every logged loss, as bits: equal or not, nothing between."""
    losses = f"{name}.log_history().iter().filter_map(|e| e.loss).map(|l| format!(\"{{:x}}\", l.to_bits()))"
    return f'println!("losses {{}}", {losses}.collect::<Vec<_>>().join(" "));'


def losses(text):
    return next(line for line in text.splitlines() if line.startswith("losses ")).split()[1:]


class Statics(unittest.TestCase):
    def test_cells_share_tensor_ids_and_threads(self):
        cache = "emoji_lab::model::KvCache::new(base.gemma.config(), 8)?"
        decode = f'let mut cache = {cache};\nprintln!("id {{:?}}", base.gemma.decode(&[2, 3], &mut cache)?.id());'
        count = 'println!("threads {}", std::fs::read_dir("/proc/self/task")?.count());'
        train = "\n{ " + trainer("t", 0.2) + " t.train()?; }\n"
        run = Run(USE + SETTING_UP, decode + train + count, decode + train + count)
        self.assertEqual(run.code, 0, run.log)
        ids = [int(re.search(r"id \D*(\d+)", run.text(cell)).group(1)) for cell in (1, 2)]
        self.assertLess(ids[0], ids[1], "the second cell's tensor ids begin anew: cells do not share statics")
        threads = [int(re.search(r"threads (\d+)", run.text(cell)).group(1)) for cell in (1, 2)]
        self.assertEqual(threads[0], threads[1], "the second cell started a thread pool of its own")

    def test_a_training_goes_on_in_the_next_cell(self):
        button = (
            "let pid = std::process::id().to_string();\n"
            "std::thread::spawn(move || { std::thread::sleep(std::time::Duration::from_millis(300)); "
            'std::process::Command::new("kill").args(["-INT", &pid]).status() });\n'
        )
        run = Run(
            USE + SETTING_UP,
            trainer("unbroken", 4) + "\nunbroken.train()?;\n" + show_losses("unbroken"),
            trainer("broken", 4),
            button + 'println!("{}", broken.train()?.to_text());\n' + show_losses("broken"),
            "broken.train()?;\n" + show_losses("broken"),
        )
        self.assertEqual(run.code, 0, run.log)
        whole, first, both = losses(run.text(1)), losses(run.text(3)), losses(run.text(4))
        self.assertIn("interrupted", run.text(3))
        self.assertTrue(0 < len(first) < len(whole), f"stopped after {len(first)} of {len(whole)} steps")
        self.assertEqual(both, whole)


class TwoKernels(unittest.TestCase):
    def test_both_train_at_the_same_time(self):
        cells = (
            USE + SETTING_UP + '\nprintln!("dir {}", std::env::var("EVCXR_TMPDIR")?);',
            trainer("t", 4) + "\nt.train()?;\n" + show_losses("t"),
        )
        runs, spans = [None, None], [None, None]

        def kernel(number):
            started = time.monotonic()
            runs[number] = Run(*cells)
            spans[number] = (started, time.monotonic())

        threads = [threading.Thread(target=kernel, args=(number,)) for number in (0, 1)]
        # The launcher chooses the directories, not a variable from outside.
        with mock.patch.dict(os.environ, clean_environment(), clear=True):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for run in runs:
            self.assertEqual(run.code, 0, run.log)
        self.assertLess(max(start for start, _ in spans), min(end for _, end in spans), "one ran after the other")
        self.assertNotEqual(runs[0].text(0), runs[1].text(0), "both in one build directory")
        self.assertEqual(losses(runs[0].text(1)), losses(runs[1].text(1)))


if __name__ == "__main__":
    unittest.main(verbosity=2)
