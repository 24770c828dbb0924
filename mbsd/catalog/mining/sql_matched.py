"""The statements of `match`: negatives that are like the positive that they are drawn for (see `sql` for the others).

A category's queries are put in a row: by number of words, then in bands of neighbouring numbers of characters, and in
a band by frequency, up in one band and down in the next. So what is near in the row is alike, across the bands' edges
too. A positive draws from a window of places around its own query, by rotation, then from ever farther ones on both
sides, and last from the whole category.

A rewrite is one that is searched as often as the positive. A positive that has none gets another query of the category
instead, like it too: nobody has searched most rewrites of a long query, and a negative that nobody ever searched is
told by that alone. Only where the category has no more to give are other rewrites drawn, by the statements of `sql`. So
there are as many negatives as without `match`.
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
       draw(p.item || chr(9) || p.text) AS shift,
       greatest(0, least(q.r - CAST(floor({window} / 2) AS BIGINT), z.n - {window})) AS start
FROM positives p JOIN items i ON i.item = p.item JOIN pool q ON q.category = i.category AND q.text = p.text
JOIN pool_sizes z ON z.category = q.category
"""

# Rewrites of a positive's query that are searched as often as it is: the frequencies' powers of two differ by at most
# `NEAR`. Once for each query, however many items it sells; of each term `LOOKS` values are tried, so the work is
# queries x `LOOKS` also where a type has many thousands of values.
NEAR = 2
LOOKS = 64
NEARBY = """
WITH drawn AS (
    SELECT q.origin, q.first, q.behind, q.type, q.script, q.value, q.n, q.bits, q.shift,
           explode(sequence(CAST(0 AS BIGINT), least(q.n, {looks}) - 1)) AS turn
    FROM (
        SELECT o.*, length(bin(1 + a.n)) AS bits, draw(o.origin || chr(9) || o.first) AS shift
        FROM (SELECT DISTINCT origin, first, behind, type, script, value, n FROM open_terms) o
        JOIN asked a ON a.text = o.origin
    ) q
)
SELECT origin, first, value, r, text, abs(farther) * 2 + CASE WHEN farther < 0 THEN 1 ELSE 0 END AS distance FROM (
    SELECT d.origin, d.first, v.value, v.r, a.text, length(bin(1 + a.n)) - d.bits AS farther
    FROM drawn d JOIN ranked_values v ON v.type = d.type AND v.script = d.script AND v.r = (d.shift + d.turn) % d.n
    JOIN asked a ON a.text = substr(d.origin, 1, d.first) || v.value || substr(d.origin, d.behind + 1)
    WHERE v.value <> d.value
) searched WHERE abs(farther) <= {near}
"""

# Those of each item's positives, the nearest in frequency first: of equally near ones the more frequent, since more
# queries are rarer than a positive than are more frequent; then in the order of `sql.TURNS`.
TURNS = """
SELECT item, type, value, type || ':' || old || '>' || value AS replaced, draw(item || chr(9) || origin) AS shift,
       origin, first, text, j
FROM (
    SELECT g.*, row_number() OVER (PARTITION BY item, origin ORDER BY j, first) AS place FROM (
        SELECT o.item, o.type, o.value AS old, v.value, o.origin, o.first, v.text,
               v.distance * 1000000 + o.k + (v.r - o.shift % o.n + o.n) % o.n * o.terms AS j
        FROM open_terms o JOIN nearby v ON v.origin = o.origin AND v.first = o.first
        WHERE NOT contains(substr(o.origin, 1, o.first), v.value)
        AND NOT contains(substr(o.origin, o.behind + 1), v.value)
    ) g
) nearest WHERE place <= {rewrites} + 2
"""

# What an item needs of its category: its own negatives, and one for each of its `{replaced}` rewrites a positive that
# does not come. `high` is the number of draws of each positive, where `sql.SHORT` has that of each item: the fewer
# positives, the more each may need, as its own draws alone may all have behaviour.
SHORT = """
SELECT w.item, 'same-category' AS source, w.own, w.need, w.need AS missing, CAST(0 AS BIGINT) AS got,
       CAST(0 AS BIGINT) AS low, z.n AS places, greatest(
           {negatives} + 1, CAST(ceil((w.expected + floor(w.expected / 3) + 3) / w.positives) AS BIGINT)
       ) AS high
FROM (
    SELECT p.item, p.positives, {negatives} * p.positives AS own, ({negatives} + {replaced}) * p.positives AS need,
           {negatives} * p.positives + greatest(0, {replaced} * p.positives - coalesce(r.n, 0)) AS expected
    FROM (SELECT item, count(*) AS positives FROM positives GROUP BY item) p
    LEFT JOIN (
        SELECT item, CAST(sum(least({rewrites}, n)) AS BIGINT) AS n
        FROM (SELECT item, shift, count(*) AS n FROM rewrites GROUP BY item, shift) of_positive GROUP BY item
    ) r ON r.item = p.item
) w JOIN items i ON i.item = w.item JOIN pool_sizes z ON z.category = i.category WHERE w.need > 0
"""
STILL_SHORT = """
SELECT * FROM (
    SELECT s.item, s.source, s.own, s.need, s.got + coalesce(p.same, 0) AS got, s.high AS low, s.high * 8 AS high,
           s.places, s.missing - coalesce(p.same, 0) - least(coalesce(p.rewrites, 0), s.need - s.own) AS missing
    FROM short s LEFT JOIN (
        SELECT item, CAST(sum(CASE WHEN source = 'rewrite' THEN 1 ELSE 0 END) AS BIGINT) AS rewrites,
               CAST(sum(CASE WHEN source = 'rewrite' THEN 0 ELSE 1 END) AS BIGINT) AS same
        FROM picked GROUP BY item
    ) p ON p.item = s.item
) s WHERE s.missing > 0 AND s.low < s.places
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

# A positive (`shift` tells an item's apart) has no more rewrites than its own: else those with many would stand for
# those with none, which are longer and rarer.
PICKED_REWRITES = """
SELECT item, source, text, replaced, shift,
       row_number() OVER (PARTITION BY item ORDER BY turn, j, text) AS slot
FROM (
    SELECT f.*, row_number() OVER (PARTITION BY f.item, f.shift ORDER BY f.j, f.text) AS turn
    FROM free f WHERE f.source = 'rewrite'
) in_turns WHERE turn <= {rewrites}
"""

# An item's positives take turns, so that each gets its own negatives where there are enough. The negatives beyond the
# item's `own` stand for rewrites, in their slots from the last one on.
PICKED = """
SELECT item, source, text, replaced, slot, 'rewrite' AS slot_of FROM picked_rewrites
UNION ALL
SELECT item, source, text, replaced, CASE WHEN got + place <= own THEN got + place ELSE need + 1 - got - place END
       AS slot, CASE WHEN got + place <= own THEN 'same-category' ELSE 'rewrite' END AS slot_of
FROM (
    SELECT t.*, row_number() OVER (PARTITION BY t.item ORDER BY t.turn, t.j, t.text) AS place,
           t.missing - least(coalesce(p.n, 0), t.need - t.own) AS room
    FROM (
        SELECT f.*, s.own, s.need, s.missing, s.got,
               row_number() OVER (PARTITION BY f.item, f.shift ORDER BY f.j, f.text) AS turn
        FROM free f JOIN short s ON s.item = f.item
        ANTI JOIN picked_rewrites r ON r.item = f.item AND r.text = f.text
        WHERE f.source = 'same-category'
    ) t LEFT JOIN (SELECT item, count(*) AS n FROM picked_rewrites GROUP BY item) p ON p.item = t.item
) in_turns WHERE place <= room
"""

# Rewrites of any frequency, for the items whose category has no more to give, or whose rewrites are not replaced. Then
# the statements of `sql` go on; their first slot is behind the last one of a rewrite that is there.
LAST_SHORT = """
SELECT * FROM (
    SELECT s.item, s.source, s.need - coalesce(c.replaced, 0) AS need,
           s.need - coalesce(c.replaced, 0) - coalesce(c.rewrites, 0) AS missing, s.low, s.high, s.places
    FROM ({short}) s LEFT JOIN (
        SELECT item, CAST(sum(CASE WHEN source = 'rewrite' THEN 1 ELSE 0 END) AS BIGINT) AS rewrites,
               CAST(sum(CASE WHEN source = 'rewrite' OR slot_of = source THEN 0 ELSE 1 END) AS BIGINT) AS replaced
        FROM chosen GROUP BY item
    ) c ON c.item = s.item WHERE s.source = 'rewrite'
) s WHERE missing > 0
"""

# What is known of the queries of a source's rows without reading them: of one row in `every`, by hash.
MEASURED = """
SELECT m.characters, m.words, coalesce(a.n, 0) AS frequency FROM (
    SELECT text, item, length(text) AS characters, {words} AS words FROM {rows}
    WHERE draw(item || chr(9) || text) % {every} = 0
) m LEFT JOIN asked a ON a.text = m.text ORDER BY m.item, m.text
"""
