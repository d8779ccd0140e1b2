"""Storyladder: three rungs of stories, one small GPT. The rooms are described in docs/architecture.md."""
