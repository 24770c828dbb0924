from __future__ import annotations

import pickle
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbsd.catalog.mining.gazetteer import Gazetteer, Span, gazetteer
from mbsd.catalog.mining.model_tagger import make_tagger
from mbsd.catalog.queries import normalise_query
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import Item
from mbsd.errors import UserError
from tests.catalog.helpers import small_catalog, write_jsonl, write_lines

ATTRIBUTES = [
    {"colour": "Red", "brand": "Nike"},
    {"colour": "Navy Blue", "brand": "回力", "mood": "red"},
    {"colour": "blue", "颜色": "红色", "mood": "calm"},
    {"colour": "blue", "袖长": "长袖", "style": "袖", "product": "T恤"},
    {"colour": "calm", "颜色": "  ＲＥＤ ", "size": "38"},
    {"colour": "đỏ", "product": "t-shirt", "note": "x" * 600},
]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    items = [Item(f"i{n}", f"item {n}", "", "", attributes) for n, attributes in enumerate(ATTRIBUTES)]
    return small_catalog(tmp_path_factory.mktemp("tagging") / "catalog", items)


def _found(tagger: Gazetteer, query: str) -> list[str]:
    assert normalise_query(query) == query
    spans = tagger.tag([query])[0]
    return [f"{query[s.start : s.end]}={s.type}:{s.value}" for s in spans]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("navy blue hat", ["navy blue=colour:navy blue"]),
        ("nike红色t恤", ["nike=brand:nike", "红色=颜色:红色", "t恤=product:t恤"]),
        ("nikered t恤x", ["t恤=product:t恤"]),  # a Latin letter behind a Chinese one begins a word
        ("credit blueish bluest red2", []),
        ("red2 red,blue/red", ["red=colour:red", "blue=colour:blue", "red=colour:red"]),
        ("长袖袖", ["长袖=袖长:长袖", "袖=style:袖"]),
        ("38 380 138码 38码", ["38=size:38", "38=size:38"]),
        ("áo đỏ đỏn nđỏ", ["đỏ=colour:đỏ"]),
        ("blue navy", ["blue=colour:blue"]),
        ("", []),
    ],
)
def test_longest_terms_that_cut_no_word(catalog: Catalog, query: str, expected: list[str]) -> None:
    assert _found(gazetteer(catalog), query) == expected


def test_a_match_cut_out_of_a_word_hides_no_shorter_one() -> None:
    tagger = Gazetteer({"红 re": ("a", "红 re"), "红": ("b", "红"), "re": ("c", "re")}, {}, {})
    assert _found(tagger, "红 red") == ["红=b:红"]
    assert _found(tagger, "红 re d") == ["红 re=a:红 re"]


def test_values_are_canonical_sorted_and_no_longer_than_a_query(catalog: Catalog) -> None:
    values = gazetteer(catalog).values
    assert values["colour"] == ("blue", "calm", "navy blue", "red", "đỏ")
    assert values["颜色"] == ("red", "红色") and values["mood"] == ("calm", "red")
    assert "note" not in values and list(values) == sorted(values)


def test_an_ambiguous_form_has_the_type_of_most_items_then_the_first_by_name(tmp_path: Path) -> None:
    attributes = [{"mood": "red", "b": "x"}, {"mood": "red", "a": "x"}, {"colour": "Red"}]
    items = [Item(f"i{n}", f"item {n}", "", "", of_item) for n, of_item in enumerate(attributes)]
    tagger = gazetteer(small_catalog(tmp_path / "catalog", items))
    assert _found(tagger, "red x") == ["red=mood:red", "x=a:x"]
    # Where it stands in no query, it still is a value: of an item, and to be replaced by.
    assert tagger.values["colour"] == ("red",) and tagger.canonical("colour", "RED") == "red"


LEXICON = [
    {"type": "product", "surface": "Tee", "value": "T-Shirt"},
    {"type": "product", "surface": "t shirt", "value": "t-shirt"},
    {"type": "colour", "surface": "navy blue", "value": "navy"},
    {"type": "mood", "surface": "calm", "value": ""},
    {"type": "颜色", "surface": "大红", "value": "红色"},
    {"type": "style", "surface": "大红"},
]


@pytest.fixture(params=["tsv", "jsonl", "parquet"])
def lexicon(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "jsonl":
        return write_jsonl(tmp_path / "lexicon.jsonl", *LEXICON)
    if request.param == "parquet":
        pq.write_table(pa.Table.from_pylist(LEXICON), tmp_path / "lexicon.parquet")
        return tmp_path / "lexicon.parquet"
    rows = ["\t".join((row["type"], row["surface"], row.get("value", ""))) for row in LEXICON]
    return write_lines(tmp_path / "lexicon.tsv", *rows)


def test_a_lexicon_adds_synonyms_and_has_precedence_over_the_catalogue(catalog: Catalog, lexicon: Path) -> None:
    tagger = gazetteer(catalog, lexicon)
    assert _found(tagger, "tee t恤 t shirt t-shirt") == [
        "tee=product:t-shirt",
        "t恤=product:t恤",
        "t shirt=product:t-shirt",
        "t-shirt=product:t-shirt",
    ]
    assert _found(tagger, "navy blue navy") == ["navy blue=colour:navy", "navy=colour:navy"]
    assert _found(tagger, "calm") == ["calm=mood:calm"], "two items have it as a colour or mood: the lexicon decides"
    assert _found(tagger, "大红") == ["大红=颜色:红色"], "the earlier row"
    assert tagger.values["colour"] == ("blue", "calm", "navy", "red", "đỏ"), "a synonym is no value"
    assert tagger.values["product"] == ("t-shirt", "t恤") and tagger.values["style"] == ("大红", "袖")


def test_an_items_own_value_is_canonical_in_any_spelling(catalog: Catalog, lexicon: Path) -> None:
    tagger = gazetteer(catalog, lexicon)
    own = [tagger.canonical("colour", value) for value in ("ＮＡＶＹ  blue", "Navy", "unheard of", "tee")]
    assert own == ["navy", "navy", "unheard of", "tee"]
    for name, values in tagger.values.items():
        assert [tagger.canonical(name, value) for value in values] == list(values)
        assert all(span.value in tagger.values[span.type] for spans in tagger.tag(values) for span in spans)
    again = pickle.loads(pickle.dumps(tagger))
    queries = ["tee navy blue", "大红长袖", "credit"]
    assert again.tag(queries) == tagger.tag(queries) and again.values == tagger.values
    assert again.canonical("colour", "navy blue") == "navy"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["colour\tred"], r"lexicon.tsv, row 1: 2 columns; expected 3"),
        (["colour\tred\tred", "\tred\tred"], r"row 2: the type is empty; expected type, surface, value"),
        (["colour\t\u3000\tred"], r"row 1: the surface is empty"),
        (["colour\tnavy\tblue", "colour\tNAVY\tblack"], r"row 2: colour 'navy' means 'black' here and 'blue' in row 1"),
        (["colour\tnavy\tblue", "colour\tdeep\tnavy"], r"row 2: the value 'navy' is itself a synonym of 'blue' in row"),
        (["colour\tdeep\tnavy", "colour\tnavy\tblue"], r"row 1: the value 'navy' is itself a synonym of 'blue' in row"),
        (["color\tnavy\tblue"], r"types color; expected names of the catalogue's attributes \(brand, colour,"),
        ([], r"lexicon.tsv: no rows; expected type, surface, value"),
    ],
)
def test_mistakes_of_a_lexicon(catalog: Catalog, tmp_path: Path, rows: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        gazetteer(catalog, write_lines(tmp_path / "lexicon.tsv", *rows))


def test_mistakes_around_a_lexicon(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="row 1: the surface is empty"):
        gazetteer(catalog, write_jsonl(tmp_path / "l.jsonl", {"type": "colour", "form": "navy"}))
    with pytest.raises(UserError, match="row 1: 'value' is a list; expected text"):
        gazetteer(catalog, write_jsonl(tmp_path / "l.jsonl", {"type": "colour", "surface": "navy", "value": ["blue"]}))
    with pytest.raises(UserError, match="none.tsv: no such file"):
        gazetteer(catalog, tmp_path / "none.tsv")
    with pytest.raises(UserError, match="tagger 'spacy'; expected gazetteer, or transformers:PATH"):
        make_tagger("spacy", catalog)


ALPHABET = "ab1éỏ红色袖 -"
WORDS = st.text(st.sampled_from(ALPHABET), min_size=1, max_size=4).map(normalise_query).filter(bool)


@given(st.lists(WORDS, min_size=1, max_size=12), st.text(st.sampled_from(ALPHABET), max_size=24).map(normalise_query))
def test_against_a_brute_force(words: list[str], query: str) -> None:
    terms = {word: (f"type {n % 3}", word.upper()) for n, word in enumerate(words)}
    tagger = Gazetteer(terms, {}, {})
    assert tagger.tag([query, "", query]) == [_brute_force(query, terms), [], _brute_force(query, terms)]


def _brute_force(query: str, terms: dict[str, tuple[str, str]]) -> list[Span]:
    """Every substring by rising start and falling length; kept where it touches no word and nothing kept before."""
    spans: list[Span] = []
    for start in range(len(query)):
        for end in range(len(query), start, -1):
            whole = all(not (_joins(query[place - 1 : place]) and _joins(query[place:][:1])) for place in (start, end))
            if query[start:end] in terms and whole and all(span.end <= start for span in spans):
                spans.append(Span(start, end, *terms[query[start:end]]))
    return spans


def _joins(character: str) -> bool:
    name = unicodedata.name(character) if character else ""
    return "LATIN" in name or "DIGIT" in name
