"""The ladder end to end, through the scripts that the user runs, in processes of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from running import TOY_CONFIG, command


def run_script(root: Path, *words: str, steps: int = 5, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a script of the project on a toy ladder under `root`; its exit status must be `status`."""
    config = root / "toy_config.py"
    config.write_text(TOY_CONFIG.format(root=str(root), steps=steps), encoding="utf-8")
    done = subprocess.run(
        command(words[0], "--config", config, *words[1:]),
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=root,
        timeout=300,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done


def assert_one_clear_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]


@pytest.mark.slow
def test_from_text_in_three_formats_to_a_told_story(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stories = [f"Once upon a time there was a cat number {i}. It ran, and it sat, and it was happy." for i in range(60)]
    text = tmp_path / "text"
    for name in ("tiny", "children", "simple"):
        (text / name).mkdir(parents=True)
    (text / "tiny" / "Tales-train.txt").write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8-sig")
    (text / "tiny" / "Tales-valid.txt").write_text("\n<|endoftext|>\n".join(stories[:9]), encoding="utf-8")
    (text / "children" / "tales.json").write_text(json.dumps([{"prompt": "p", "text": s} for s in stories]))
    pq.write_table(pa.table({"story": stories}), text / "simple" / "train-00000-of-00001.parquet")
    pq.write_table(pa.table({"story": stories[:9]}), text / "simple" / "test-00000-of-00001.parquet")

    run_script(tmp_path, "prepare_data.py", "--from", str(text))
    names = {"train.bin", "val.bin", "train_ch.bin", "val_ch.bin", "train_simp.bin", "val_simp.bin"}
    assert names <= {path.name for path in (tmp_path / "data").iterdir()}
    for script, result in (
        ("train_tiny.py", "tinystories_28M_final.pt"),
        ("train_children.py", "children_stories_fin.pt"),
        ("train_simp.py", "simple_stories_ckpt.pt"),
    ):
        done = run_script(tmp_path, script, "--device", "cpu")
        assert "device cpu" in done.stdout and result in done.stdout
        assert (tmp_path / "checkpoints" / result).exists()
    told = run_script(tmp_path, "generate.py", "--prompt", "Once upon a time", "--seed", "3")
    assert told.stdout.startswith("Once upon a time") and len(told.stdout) > 30
    assert "simple_stories_ckpt.pt: stage simple, step" in told.stderr and "val_loss" in told.stderr
    again = run_script(tmp_path, "generate.py", "--prompt", "Once upon a time", "--seed", "3")
    assert again.stdout == told.stdout
    assert "is finished" in run_script(tmp_path, "train_simp.py").stdout


@pytest.mark.slow
def test_ctrl_c_saves_leaves_with_130_and_the_same_command_goes_on(tmp_path: Path) -> None:
    run_script(tmp_path, "prepare_data.py", "--sample")
    config = tmp_path / "toy_config.py"
    config.write_text(TOY_CONFIG.format(root=str(tmp_path), steps=100_000), encoding="utf-8")
    begun = command("train_tiny.py", "--config", config, "--device", "cpu")
    with subprocess.Popen(begun, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        record = tmp_path / "runs" / "tiny.jsonl"
        deadline = time.monotonic() + 60
        while not (record.exists() and '"train"' in record.read_text(encoding="utf-8")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        second = run_script(tmp_path, "train_tiny.py", status=2)  # a second terminal in the same folder
        assert_one_clear_line(second, "in use by train_tiny.py, process", str(process.pid))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "saved at step" in said and "Traceback" not in said
    done = run_script(tmp_path, "train_tiny.py", "--accept-changes", steps=5)
    assert "continuing at step" in done.stdout


@pytest.mark.slow
def test_the_wrong_order_of_commands_names_the_right_one(tmp_path: Path) -> None:
    assert_one_clear_line(run_script(tmp_path, "train_tiny.py", status=2), "train.bin", "prepare_data.py --config")
    assert_one_clear_line(run_script(tmp_path, "generate.py", status=2), "no stage has a result", "train_tiny.py")
    assert_one_clear_line(run_script(tmp_path, "prepare_data.py", status=2), "--sample", "--download", "--from")
    run_script(tmp_path, "prepare_data.py", "--sample")
    assert_one_clear_line(run_script(tmp_path, "train_simp.py", status=2), "train_children.py --config", "first")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["generate.py", "--temperature", "nan"], "temperature"),
        (["generate.py", "--temperature", "-1"], "temperature"),
        (["generate.py", "--top-k", "0"], "top_k"),
        (["generate.py", "--num-samples", "-2"], "num_samples"),
        (["generate.py", "--max-new-tokens", "x"], "max-new-tokens"),
        (["generate.py", "--prompt", "a\x07b"], "control character"),
        (["generate.py", "--prompt", "a" * 120_000], "bytes"),
        (["generate.py", "--tempreature", "1"], "--temperature"),
        (["generate.py", "--checkpoint", "nowhere.pt"], "nowhere.pt"),
        (["train_tiny.py", "--minutes", "-3"], "minutes"),
        (["train_tiny.py", "--device", "tpu"], "device"),
        (["train_tiny.py", "--preset", "defualt"], "default"),
        (["prepare_data.py", "--from", "nowhere"], "nowhere"),
        (["prepare_data.py", "--sample", "--download"], "not allowed"),
    ],
)
def test_a_wrong_flag_is_one_clear_line_and_status_2(tmp_path: Path, words: list[str], named: str) -> None:
    assert_one_clear_line(run_script(tmp_path, *words, status=2), named)
