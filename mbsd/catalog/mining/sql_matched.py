"""The statements of `match`: negatives that are like the positive that they are drawn for (see `sql` for the others).

A category's queries are put in a row: by number of words, then in bands of neighbouring numbers of characters, and in
a band by frequency, up in one band and down in the next. So what is near in the row is alike, across the bands' edges
too. A positive draws from a window of places around its own query, by rotation, then from ever farther ones on both
sides, and last from the whole category: as many negatives exist as without `match`.
"""

# The frequency of a query is the number of the log's rows with it, in any of its spellings, of any kind and for any
# item; 0 where nobody ever searched it.
ASKED = """
SELECT coalesce(q.text, s.raw) AS text, CAST(sum(s.n) AS BIGINT) AS n
FROM spellings s LEFT JOIN respelled q ON q.raw = s.raw WHERE s.raw IS NOT NULL GROUP BY coalesce(q.text, s.raw)
"""
WORDS = "length({text}) - length(replace({text}, ' ', '')) + 1"

# A band has sqrt(BAND x window x queries) of them. With BAND 1 it would be as narrow in length as a window in it is in
# frequency; but purchases differ more in frequency from what else is searched, and wide bands are narrow windows.
BAND = 4
POOL = """
SELECT category, text, row_number() OVER (
           PARTITION BY category
           ORDER BY layer, CASE WHEN layer % 2 = 0 THEN n ELSE -n END, draw(category || chr(9) || text), text
       ) - 1 AS r
FROM (
    SELECT category, text, n, dense_rank() OVER (PARTITION BY category ORDER BY words, band) AS layer
    FROM (
        SELECT category, text, n, words, CAST(floor(
                   (rank() OVER (PARTITION BY category, words ORDER BY characters) - 1)
                   / ceil(sqrt({band} * count(*) OVER (PARTITION BY category, words)))
               ) AS BIGINT) AS band
        FROM (
            SELECT d.category, d.text, {words} AS words, {characters} AS characters, {frequency} AS n
            FROM (
                SELECT DISTINCT i.category, b.text FROM bought b JOIN items i ON i.item = b.item WHERE i.category <> ''
            ) d JOIN asked a ON a.text = d.text
        ) measured
    ) banded
) layered
"""

# Where each positive's window begins: its own query is in the middle, but at the row's ends.
ANCHORS = """
SELECT p.item, p.text AS origin, q.category, z.n, least({window}, z.n) AS width,
       draw(p.item || chr(9) || q.category || chr(9) || p.text) AS shift,
       greatest(0, least(q.r - CAST(floor({window} / 2) AS BIGINT), z.n - {window})) AS start
FROM positives p JOIN items i ON i.item = p.item JOIN pool q ON q.category = i.category AND q.text = p.text
JOIN pool_sizes z ON z.category = q.category
"""

# The number of draws of each positive, where `sql.SHORT` has that of each item: the fewer positives, the more each may
# need, as its own draws alone may all have behaviour.
SHORT = """
SELECT item, source, need, missing, low,
       CASE WHEN source = 'rewrite' THEN {looks}
            ELSE greatest({negatives} + 2, CAST(ceil((need + floor(need / 3) + 4) / positives) AS BIGINT))
            END AS high, places
FROM (SELECT s.*, need / greatest({negatives}, 1) AS positives FROM ({short}) s) of_item
"""
# Items that the first round leaves short of rewrites begin again, for what it passed over.
STILL_SHORT = """
SELECT s.item, s.source, s.need, s.missing - coalesce(p.n, 0) AS missing,
       CASE WHEN s.source = 'rewrite' AND s.high = {looks} THEN 0 ELSE s.high END AS low, s.high * 8 AS high, s.places
FROM short s LEFT JOIN (SELECT item, source, count(*) AS n FROM picked GROUP BY item, source) p
ON p.item = s.item AND p.source = s.source
WHERE s.missing > coalesce(p.n, 0) AND s.high < s.places
"""

# Terms are in no order in which their queries would be alike. So a positive looks at `LOOKS` rewrites for each that it
# needs, and the first round keeps those that are nearest to it in frequency, by powers of two.
LOOKS = 6
MARKED_TERMS = """
SELECT o.*, length(bin(1 + a.n)) AS bits, draw(o.item || chr(9) || o.origin) AS whose
FROM open_terms o JOIN asked a ON a.text = o.origin
"""
ALSO = ", d.bits, d.whose, d.every"
EVERY = "s.high > {looks} OR s.high >= s.places AS every, "
TURNS = """
SELECT item, type, value, replaced, shift, origin, first, text, j FROM (
    SELECT g.*, row_number() OVER (PARTITION BY item, origin ORDER BY j, shift) AS place FROM (
        SELECT t.item, t.type, t.value, t.replaced, t.whose AS shift, t.origin, t.first, t.text, t.every,
               abs(length(bin(1 + coalesce(a.n, 0))) - t.bits) * 1000000 + t.j AS j
        FROM ({turns}) t LEFT JOIN asked a ON a.text = t.text
    ) g
) nearest WHERE place <= {rewrites} + 2 OR every
"""

# Place j of a positive's own order of the category: its window in rotation, then outward on both sides in turns, and,
# where one side has ended, on the other alone.
SAME_CATEGORY = """
WITH drawn AS (
    SELECT a.*, explode(sequence(s.low, least(s.high, a.n) - 1)) AS j
    FROM anchors a JOIN short s ON s.item = a.item WHERE s.source = 'same-category' AND s.low < a.n
),
outward AS (
    SELECT drawn.*, start AS below, n - start - width AS above, j - width AS k FROM drawn
),
placed AS (
    SELECT item, category, origin, j, shift, CASE
        WHEN k < 0 THEN start + (shift + j) % width
        WHEN k < 2 * least(below, above) AND (k + shift) % 2 = 0 THEN start + width + CAST(floor(k / 2) AS BIGINT)
        WHEN k < 2 * least(below, above) THEN start - 1 - CAST(floor(k / 2) AS BIGINT)
        WHEN above > below THEN start + width + k - below
        ELSE start - 1 - (k - above) END AS r
    FROM outward
)
SELECT item, 'same-category' AS source, text, j, '' AS replaced, shift FROM (
    SELECT d.item, p.text, d.j, d.shift, row_number() OVER (PARTITION BY d.item, p.text ORDER BY d.j, d.shift) AS place
    FROM placed d JOIN pool p ON p.category = d.category AND p.r = d.r WHERE p.text <> d.origin
) once WHERE place = 1
"""


def _picked(source: str, without: str = "") -> str:
    """An item's positives (`shift` tells them apart) take turns, so that each gets its own negatives where there are
    enough."""
    return f"""
SELECT item, source, text, replaced, need - missing + place AS slot FROM (
    SELECT item, source, text, replaced, need, missing,
           row_number() OVER (PARTITION BY item ORDER BY turn, j, text) AS place
    FROM (
        SELECT f.item, f.source, f.text, f.replaced, f.j, s.need, s.missing,
               row_number() OVER (PARTITION BY f.item, f.shift ORDER BY f.j, f.text) AS turn
        FROM free f JOIN short s ON s.item = f.item AND s.source = f.source {without}
        WHERE f.source = '{source}'
    ) in_turns
) ranked WHERE place <= missing
"""


PICKED_REWRITES = _picked("rewrite")
PICKED = f"""
SELECT * FROM picked_rewrites
UNION ALL
{_picked("same-category", "ANTI JOIN picked_rewrites r ON r.item = f.item AND r.text = f.text")}
"""

# What is known of the queries of a source's rows without reading them: of one row in `every`, by hash.
MEASURED = """
SELECT m.characters, m.words, coalesce(a.n, 0) AS frequency FROM (
    SELECT text, item, length(text) AS characters, {words} AS words FROM {rows}
    WHERE draw(item || chr(9) || text) % {every} = 0
) m LEFT JOIN asked a ON a.text = m.text ORDER BY m.item, m.text
"""
