"""The vocabulary of the generated data: names, places and sentences in many scripts."""

from __future__ import annotations

from random import Random

FIRST_NAMES = (
    "Amara", "Zoë", "José", "Łukasz", "Søren", "Nguyễn", "Björk", "Chloé", "Dvořák", "Åsa", "Ġorġ",
    "Mary-Jane", "太郎", "美咲", "小明", "지우", "Ольга", "Дмитро", "Ελένη", "محمد", "فاطمة", "נועה",
    "אורי", "अर्जुन", "สมชาย", "თამარ", "Ana", "Ben", "Cara", "Dan", "Eve", "Finn", "Gia", "Hugo",
    "Ida", "Jon", "Kim", "Lou", "Max", "Nia", "Sam 🚀",
)  # fmt: skip
LAST_NAMES = (
    "O'Brien", "García", "Müller", "Šimić", "Þórsson", "van der Berg", "de la Cruz", "Smith", "Okafor",
    "D'Angelo", "山田", "佐藤", "王", "김", "Иванова", "Παπαδοπούλου", "العربي", "כהן", "शर्मा", "ใจดี",
    "Nakamura", "Fox 🦊", "Lee 👩‍🚀",
)  # fmt: skip
PLACES = (
    "Oslo", "São Paulo", "Kraków", "東京", "القاهرة", "Reykjavík", "Tel Aviv · תל אביב", "Zürich",
    "서울", "Québec", "Lagos", "Αθήνα", "München", "Praha",
)  # fmt: skip
WORDS = (
    "amber", "atlas", "birch", "cedar", "cobalt", "coral", "delta", "ember", "falcon", "fjord",
    "garnet", "harbor", "indigo", "jasper", "juniper", "kestrel", "lagoon", "larch", "lumen", "maple",
    "meadow", "nimbus", "onyx", "opal", "orchid", "pebble", "pine", "quartz", "raven", "saffron",
    "sierra", "slate", "sparrow", "summit", "tidal", "topaz", "umber", "velvet", "willow", "zephyr",
)  # fmt: skip
PHRASES = (
    "opens early on weekdays", "has room for twelve", "can be booked by the hour",
    "comes with a projector", "is close to the station", "serves très bon café ☕", "costs 25 € a day",
    "has “quiet” corners", "is 徒歩5分 away", "keeps bikes & prams dry", "is <b>not</b> heated",
    "offers 50 % off in July", "needs a key\tfrom the desk", "says \"welcome\"",
    "can’t be found on maps", "أهلا وسهلا بكم", "ברוכים הבאים", "stays open \\ all night", "🌍🌱✨",
)  # fmt: skip


def full_names(rng: Random, count: int) -> list[str]:
    """Return names of people, a first and a last one, in any mix of scripts."""
    return [f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}" for _ in range(count)]


def sentences(rng: Random, count: int) -> list[str]:
    """Return short sentences of 20 to 90 characters, some with quotes, emoji or right-to-left text."""
    return [
        f"{rng.choice(WORDS).title()} {rng.choice(WORDS)} {rng.choice(PHRASES)}, {rng.choice(WORDS)} too."
        for _ in range(count)
    ]


def ascii_text(rng: Random, length: int) -> str:
    """Return plain words of one byte a character, to fill a document up to a size."""
    text = " ".join(rng.choices(WORDS, k=length // 4 + 1))
    return text[:length]
