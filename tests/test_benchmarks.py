"""Benchmarks run on a little text, and their sections replace each other in RESULTS.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from running import TOY_CONFIG, run_script

from benchmarks.results import hardware_line, write_section
from storyladder.corpus.sample_stories import sample_stories


def test_a_section_is_appended_once_and_replaced_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    write_section("One", ["first", "", "| a |"], path)
    write_section("Two", ["second"], path)
    head, *sections = path.read_text(encoding="utf-8").split("\n\n## ")
    assert head.startswith("# Benchmark results") and sections == ["One\n\nfirst\n\n| a |", "Two\n\nsecond\n"]
    write_section("One", ["changed ## not a title"], path)
    write_section("On", ["another"], path)
    assert path.read_text(encoding="utf-8") == (
        f"{head}\n\n## One\n\nchanged ## not a title\n\n## Two\n\nsecond\n\n## On\n\nanother\n"
    )
    assert list(tmp_path.iterdir()) == [path]


def test_the_machine_is_described_in_one_line() -> None:
    line = hardware_line()
    assert "\n" not in line
    for word in (" cores", "Python 3.", "torch 2.", "numpy ", "tiktoken 0.", "pyarrow ", "; 20"):
        assert word in line


@pytest.mark.slow
def test_the_preparation_benchmark_compares_the_same_text(tmp_path: Path) -> None:
    text, results = tmp_path / "few.txt", tmp_path / "RESULTS.md"
    stories = list(sample_stories("tiny", 300))
    text.write_text("\n<|endoftext|>\n".join(stories) + "\n<|endoftext|>\n", encoding="utf-8")
    flags = ("--text", text, "--mb", text.stat().st_size * 1.5 / 1e6, "--rounds", 1, "--results", results, "--json")
    done = run_script("benchmarks/preparation.py", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["text_mb"] == round(2 * sum(map(len, stories)) / 1e6, 1) and found["rounds"] == 1
    assert found["tokens"] == found["plain_tokens"] > 50_000
    assert found["mb_per_s"] > 0 and 0.01 < found["peak_rss_gb"] < 1
    # All of these are rounded, some twice, and on a busy machine the speeds are well below 1 MB/s.
    assert found["ratio_plain"] == pytest.approx(found["mb_per_s"] / found["plain_mb_per_s"], rel=0.15)
    assert found["ratio_processes"] == pytest.approx(found["mb_per_s"] / found["processes_mb_per_s"], rel=0.15)
    section = results.read_text(encoding="utf-8")
    assert "## Preparation: few.txt" in section and "read 2 times" in section and str(tmp_path) not in section
    row = re.search(r"\| Storyladder \| ([\d.]+) \|", section)
    assert row is not None and float(row[1]) == pytest.approx(found["mb_per_s"], abs=0.06)


def test_the_preparation_benchmark_names_a_missing_text() -> None:
    done = run_script("benchmarks/preparation.py", "--text", "nowhere.txt")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --text nowhere.txt: no such file; give files of stories\n"


@pytest.mark.slow
def test_the_evaluation_benchmark_scores_the_same_text(tmp_path: Path) -> None:
    config = tmp_path / "toy.py"
    config.write_text(TOY_CONFIG.format(steps=4, root=str(tmp_path)), encoding="utf-8")
    flags = ("--config", config, "--mb", 0.02, "--minutes", 1, "--no-results", "--json")
    done = run_script("benchmarks/evaluation.py", *flags)
    assert done.returncode == 0, done
    found = json.loads(done.stdout.splitlines()[-1])
    speeds = found["tokens_per_s"]
    assert list(speeds) == ["Storyladder", "transformers, fp32", "transformers, bf16"]
    assert found["largest_difference"] < 1e-4 and "DIFFERENT" not in done.stdout
    best = max(speeds["transformers, fp32"], speeds["transformers, bf16"])
    assert found["ratio_transformers"] == pytest.approx(speeds["Storyladder"] / best, rel=0.01)
    assert set(found["n"].values()) == {1} and "; 1 parts;" in done.stdout
