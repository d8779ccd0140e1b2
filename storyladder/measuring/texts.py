"""The texts that models are scored on: validation files of the ladder, or any file of stories, as token files."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from storyladder.corpus.cleaning import clean_story
from storyladder.corpus.corpora import token_files
from storyladder.corpus.download import sha256_of
from storyladder.corpus.fields import Reading
from storyladder.corpus.readers import is_readable, read_plain_stories, read_stories
from storyladder.corpus.token_file import Ids, TokenFile, TokenWriter, open_token_file
from storyladder.corpus.tokenizer import Tokenizer
from storyladder.measuring.protocols import Ends, count_stories, story_ends
from storyladder.runtime.errors import DataError
from storyladder.settings import CorpusConfig, Ladder

_BUNDLE_CHARS = 1 << 22  # characters encoded together


@dataclasses.dataclass(frozen=True)
class Text:
    """One text in our tokens; other tokenizers get its stories decoded, so that all models score the same bytes."""

    name: str
    file: TokenFile
    tokenizer: Tokenizer
    sha256: str  # of the file given with --text; of a corpus's token file

    @property
    def ids(self) -> Ids:
        """All tokens, mapped into memory."""
        return self.file.ids

    @functools.cached_property
    def ends(self) -> Ends:
        """Where its stories end."""
        return story_ends(self.ids, self.tokenizer.eot)

    @property
    def n_stories(self) -> int:
        """How many stories it has."""
        return count_stories(self.ids, self.ends)

    def stories(self) -> Iterator[str]:
        """The stories as text, without EOT."""
        begin = 0
        for end in self.ends.tolist():
            yield self.tokenizer.decode(self.ids[begin:end].tolist())
            begin = end + 1
        if begin < len(self.ids):
            yield self.tokenizer.decode(self.ids[begin:].tolist())


def validation_texts(ladder: Ladder, tokenizer: Tokenizer, log: Callable[[str], None]) -> list[Text]:
    """The validation file of every corpus that has one. DataError if there is none, or if one is damaged."""
    paths = {stage.corpus: token_files(ladder, stage)[1] for stage in ladder.stages}
    there = {corpus: path for corpus, path in paths.items() if path.exists()}
    if not there:
        raise DataError(
            f"there is no validation text in {ladder.folder('data')}; create it with python prepare_data.py, "
            "or give any text with --text FILE"
        )
    for corpus in [corpus for corpus in paths if corpus not in there]:
        log(f"note: corpus {corpus} has no {paths[corpus]}; to create it: {ladder.command('prepare_data.py')}")
    texts = []
    for corpus, path in there.items():
        file = open_token_file(path, tokenizer=tokenizer.fingerprint, vocab_size=tokenizer.vocab_size)
        texts.append(Text(corpus, file, tokenizer, file.fingerprint))
    return texts


def text_of_file(
    path: Path, corpus: CorpusConfig, tokenizer: Tokenizer, folder: Path, check_stop: Callable[[], None] = lambda: None
) -> Text:
    """Any file that prepare_data.py reads, cleaned and encoded as it does, into a token file in `folder`.

    A file of unknown kind is read as plain text. DataError if it is empty, or not UTF-8.
    """
    reading = Reading(separator=corpus.story_separator, field=corpus.story_field)
    stories = read_stories(path, reading) if is_readable(path.name) else read_plain_stories(path, reading)
    cleaned = (clean_story(story, corpus.cleaning, Counter()) for story in stories)
    with TokenWriter(folder / "text.bin", tokenizer.fingerprint) as writer:
        for bundle in _bundles(story for story in cleaned if story):
            ids = tokenizer.encode_stories(bundle)
            writer.add(ids, stories=len(bundle), text_bytes=sum(len(story.encode()) for story in bundle))
            check_stop()
        if not writer.stories:
            raise DataError(f"{path} holds no story; give --text a file of UTF-8 text")
        writer.finish(sources=[path.name], cleaning={})
    file = open_token_file(writer.path, tokenizer=tokenizer.fingerprint, vocab_size=tokenizer.vocab_size)
    return Text(path.name, file, tokenizer, sha256_of(path))


def _bundles(stories: Iterable[str]) -> Iterator[list[str]]:
    """Lists of stories of about 4 MB."""
    bundle: list[str] = []
    size = 0
    for story in stories:
        bundle.append(story)
        size += len(story)
        if size >= _BUNDLE_CHARS:
            yield bundle
            bundle, size = [], 0
    if bundle:
        yield bundle
