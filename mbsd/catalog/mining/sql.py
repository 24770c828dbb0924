"""The statements of mining, in the subset of SQL that DuckDB and Spark share (see `dialect`), in their order.

Text is compared and ordered by its bytes in both. `draw` is the portable hash of the seed and a string; ties are broken
by the string itself. Names in braces are filled in by `mine`, `log_tables` and `terms`.
"""

# The one pass over all columns before the draws: spellings of queries, and why rows are left out (index in `FAULTS`).
FAULTS = ("", "undecodable text", "null query", "null item", "null user", "bad time", "unknown item")
SPELLINGS = """
SELECT raw, fault, count(*) AS n, count(*) - count(micros) AS bad_times, min(place) AS first FROM (
    SELECT l.query AS raw, l.micros, l.place,
           CASE WHEN l.undecodable THEN 1 WHEN l.query IS NULL THEN 2 WHEN l.item_id IS NULL OR l.item_id = '' THEN 3
                WHEN l.user_id IS NULL OR l.user_id = '' THEN 4 WHEN {timed} AND l.micros IS NULL THEN 5 ELSE 0 END
           AS fault
    FROM placed_log l {of}
) judged GROUP BY raw, fault
"""
# Few items, or none, are unknown to the catalogue. So the rows of unknown items are looked up again, instead of every
# row's item among all known ones. A row with another fault is counted as that, in whichever item.
STRANGERS = (
    "SELECT DISTINCT l.item_id FROM log l ANTI JOIN items i ON i.item_id = l.item_id WHERE l.item_id IS NOT NULL"
)
OF_STRANGERS = "SEMI JOIN strangers s ON s.item_id = l.item_id"

QUERY_FAULTS = ("", "empty query", "query too long")
COUNTS = """
SELECT fault, query_fault, sum(n) AS n, sum(bad_times) AS bad_times, min(first) AS first FROM (
    SELECT s.fault, s.n, s.bad_times, s.first,
           CASE WHEN coalesce(q.text, s.raw) = '' THEN 1
           WHEN length(coalesce(q.text, s.raw)) > {longest} THEN 2 ELSE 0 END AS query_fault
    FROM (
        SELECT raw, fault, n, bad_times, first FROM spellings
        UNION ALL SELECT raw, fault, -n AS n, -bad_times AS bad_times, CAST(NULL AS BIGINT) AS first
        FROM of_strangers WHERE fault = 0
        UNION ALL SELECT raw, 6 AS fault, n, bad_times, first FROM of_strangers WHERE fault = 0
    ) s LEFT JOIN respelled q ON q.raw = s.raw
) judged GROUP BY fault, query_fault
"""

PURCHASES = """
SELECT text, item, buyer, micros FROM (
    SELECT coalesce(q.text, l.query) AS text, i.item, l.user_id AS buyer, l.micros
    FROM log l JOIN items i ON i.item_id = l.item_id LEFT JOIN respelled q ON q.raw = l.query
    WHERE l.kind = 'purchase' AND l.user_id <> '' AND l.query IS NOT NULL AND NOT l.undecodable
    AND (NOT {timed} OR l.micros IS NOT NULL)
) joined WHERE text <> '' AND length(text) <= {longest}
"""

BOUGHT = (
    "SELECT text, item, count(DISTINCT buyer) AS buyers, CAST(0 AS BIGINT) AS micros FROM purchases GROUP BY text, item"
)

# The same with the time when a pair became a positive: that of its `min_buyers`th buyer.
BOUGHT_WITH_TIME = """
SELECT text, item, buyers, micros FROM (
    SELECT text, item, micros, row_number() OVER (PARTITION BY text, item ORDER BY micros, buyer) AS place,
           count(*) OVER (PARTITION BY text, item) AS buyers
    FROM (SELECT text, item, buyer, min(micros) AS micros FROM purchases GROUP BY text, item, buyer) first_times
) ranked WHERE place = least(buyers, {min_buyers})
"""

FOUND = "SELECT * FROM bought WHERE buyers >= {min_buyers}"

# Where an item has too many, those with the most buyers stay.
POSITIVES = """
SELECT f.text, f.item, f.buyers, {split} AS split FROM (
    SELECT text, item, buyers, micros,
           row_number() OVER (PARTITION BY item ORDER BY buyers DESC, draw(item || chr(9) || text), text) AS place
    FROM found
) f JOIN items i ON i.item = f.item WHERE {cap} = 0 OR f.place <= {cap}
"""
SPLIT_OF_ITEM = "i.split"
SPLIT_OF_TIME = (
    "CASE WHEN f.micros < {validation} THEN 'train' WHEN f.micros < {test} THEN 'validation' ELSE 'test' END"
)

# For a split by time: the split of an item's nth negative, in a random order, so that where an item has too few
# negatives no split is favoured.
SLOTS = """
SELECT item, source, split,
       row_number() OVER (
           PARTITION BY item, source ORDER BY draw(source || chr(9) || item || chr(9) || text), text, copy
       ) AS slot
FROM (
    SELECT item, text, split, 'rewrite' AS source, explode(sequence(1, {rewrites})) AS copy FROM positives
    WHERE {rewrites} > 0
    UNION ALL
    SELECT item, text, split, 'same-category' AS source, explode(sequence(1, {negatives})) AS copy FROM positives
    WHERE {negatives} > 0
) wanted
"""

# Queries that led to a purchase in a category, in the category's random order.
POOL = """
SELECT category, text,
       row_number() OVER (PARTITION BY category ORDER BY draw(category || chr(9) || text), text) - 1 AS r
FROM (
    SELECT DISTINCT i.category, b.text FROM bought b JOIN items i ON i.item = b.item WHERE i.category <> ''
) distinct_queries
"""
POOL_SIZES = "SELECT category, count(*) AS n FROM pool GROUP BY category"

# The same for the values of a type, apart by script: no Latin term is put in a Chinese query.
RANKED_VALUES = """
SELECT type, script, value,
       row_number() OVER (PARTITION BY type, script ORDER BY draw(type || chr(9) || value), value) - 1 AS r,
       count(*) OVER (PARTITION BY type, script) AS n
FROM term_values
"""

# The terms of each positive's query that can be replaced: the item's own value of the type is known.
OPEN_TERMS = """
SELECT item, origin, type, script, value, first, behind, n, shift,
       row_number() OVER (PARTITION BY item, origin ORDER BY shift, first) - 1 AS k,
       count(*) OVER (PARTITION BY item, origin) AS terms, max(n) OVER (PARTITION BY item, origin) AS most
FROM (
    SELECT p.item, p.text AS origin, t.type, t.script, t.value, t.first, t.behind, v.n,
           draw(p.item || chr(9) || p.text || chr(9) || t.first) AS shift
    FROM positives p JOIN terms t ON t.text = p.text
    JOIN (SELECT DISTINCT type, script, n FROM ranked_values) v ON v.type = t.type AND v.script = t.script
    SEMI JOIN own_values o ON o.item = p.item AND o.type = t.type
) known
"""

# The positions of a rotation (low to high) that an item reads in this round, of all `places` that it has.
SHORT = """
SELECT s.item, s.source, s.need, s.need AS missing, CAST(0 AS BIGINT) AS low,
       CASE WHEN s.source = 'rewrite' THEN {rewrites} + 2
            ELSE s.need + CAST(floor(s.need / 3) AS BIGINT) + 2 END AS high, l.places
FROM (
    SELECT item, 'rewrite' AS source, {rewrites} * count(*) AS need FROM positives GROUP BY item
    UNION ALL
    SELECT item, 'same-category' AS source, {negatives} * count(*) AS need FROM positives GROUP BY item
) s
JOIN (
    SELECT item, 'rewrite' AS source, max(terms * most) AS places FROM open_terms GROUP BY item
    UNION ALL
    SELECT i.item, 'same-category' AS source, z.n AS places FROM items i JOIN pool_sizes z ON z.category = i.category
) l ON l.item = s.item AND l.source = s.source
WHERE s.need > 0
"""

STILL_SHORT = """
SELECT s.item, s.source, s.need, s.missing - coalesce(p.n, 0) AS missing, s.high AS low, s.high * 8 AS high, s.places
FROM short s LEFT JOIN (SELECT item, source, count(*) AS n FROM picked GROUP BY item, source) p
ON p.item = s.item AND p.source = s.source
WHERE s.missing > coalesce(p.n, 0) AND s.high < s.places
"""

# Rotation: a hash is the position in a random order at which an item begins to read, so that the work is items x draws.
# A query's terms take turns: its position j is of term j mod terms, at that term's own position floor(j / terms).
TURNS = """
WITH due AS (
    SELECT o.*, CAST(ceil((s.low - o.k) / o.terms) AS BIGINT) AS early,
           least(o.n - 1, CAST(floor((s.high - 1 - o.k) / o.terms) AS BIGINT)) AS late
    FROM open_terms o JOIN short s ON s.item = o.item WHERE s.source = 'rewrite'
),
drawn AS (
    SELECT due.*, explode(sequence(early, late)) AS turn FROM due WHERE early <= late
)
SELECT d.item, d.type, v.value, d.type || ':' || d.value || '>' || v.value AS replaced,
       d.k + d.turn * d.terms AS j, d.shift, d.origin, d.first,
       substr(d.origin, 1, d.first) || v.value || substr(d.origin, d.behind + 1) AS text
FROM drawn d JOIN ranked_values v ON v.type = d.type AND v.script = d.script AND v.r = (d.shift + d.turn) % d.n
WHERE v.value <> d.value AND NOT contains(substr(d.origin, 1, d.first), v.value)
AND NOT contains(substr(d.origin, d.behind + 1), v.value)
"""

REWRITES = """
SELECT item, 'rewrite' AS source, text, j, replaced, shift FROM (
    SELECT t.item, t.text, t.j, t.replaced, t.shift,
           row_number() OVER (PARTITION BY t.item, t.text ORDER BY t.j, t.shift, t.origin, t.first) AS place
    FROM turns t
    ANTI JOIN own_values a ON a.item = t.item AND a.value = t.value
    ANTI JOIN own_values b ON b.item = t.item AND b.type = t.type
    AND (contains(b.value, t.value) OR contains(t.value, b.value))
    WHERE length(t.text) <= {longest}
) once WHERE place = 1
"""

SAME_CATEGORY = """
WITH shifted AS (
    SELECT s.item, i.category, z.n, s.low, s.high, draw(s.item || chr(9) || i.category) AS shift
    FROM short s JOIN items i ON i.item = s.item JOIN pool_sizes z ON z.category = i.category
    WHERE s.source = 'same-category' AND s.low < z.n
),
drawn AS (
    SELECT item, category, n, shift, explode(sequence(low, least(high, n) - 1)) AS j FROM shifted
)
SELECT d.item, 'same-category' AS source, p.text, d.j, '' AS replaced, d.shift
FROM drawn d JOIN pool p ON p.category = d.category AND p.r = (d.shift + d.j) % d.n
"""

CANDIDATES = "SELECT * FROM rewrites UNION ALL SELECT * FROM same_category"

# The one pass over the log for all candidates of a round. Of its rows only those are joined whose hash is that of a
# candidate in one of its spellings; the hash is the engine's own, and decides nothing.
KEYS = """
SELECT xxhash64(c.text, i.item_id) AS key FROM candidates c JOIN items i ON i.item = c.item
UNION
SELECT xxhash64(q.raw, i.item_id) AS key
FROM candidates c JOIN items i ON i.item = c.item JOIN respelled q ON q.text = c.text
"""
HIT = """
SELECT DISTINCT b.text, b.item FROM (
    SELECT coalesce(q.text, n.query) AS text, i.item
    FROM (SELECT l.query, l.item_id FROM {log} l SEMI JOIN keys k ON k.key = xxhash64(l.query, l.item_id)) n
    JOIN items i ON i.item_id = n.item_id LEFT JOIN respelled q ON q.raw = n.query
) b SEMI JOIN candidates c ON c.text = b.text AND c.item = b.item
"""
# Few items are left after the first round: of their rows alone the queries are read.
DUE = "SELECT DISTINCT i.item_id FROM candidates c JOIN items i ON i.item = c.item"
ROWS_DUE = "SELECT l.query, l.item_id FROM log l SEMI JOIN due d ON d.item_id = l.item_id"

FREE = """
SELECT c.* FROM candidates c ANTI JOIN hit h ON h.text = c.text AND h.item = c.item
ANTI JOIN chosen k ON k.text = c.text AND k.item = c.item
"""

# Rewrites come first: they have fewer places to come from. `slot_of` is the source that was asked for.
PICKED_REWRITES = """
SELECT item, source, text, replaced, need - missing + place AS slot FROM (
    SELECT f.item, f.source, f.text, f.replaced, s.need, s.missing,
           row_number() OVER (PARTITION BY f.item ORDER BY f.j, f.shift, f.text) AS place
    FROM free f JOIN short s ON s.item = f.item AND s.source = f.source WHERE f.source = 'rewrite'
) ranked WHERE place <= missing
"""

PICKED = """
SELECT p.*, source AS slot_of FROM picked_rewrites p
UNION ALL
SELECT item, source, text, replaced, need - missing + place AS slot, source AS slot_of FROM (
    SELECT f.item, f.source, f.text, f.replaced, s.need, s.missing,
           row_number() OVER (PARTITION BY f.item ORDER BY f.j, f.text) AS place
    FROM free f JOIN short s ON s.item = f.item AND s.source = f.source
    ANTI JOIN picked_rewrites r ON r.item = f.item AND r.text = f.text
    WHERE f.source = 'same-category'
) ranked WHERE place <= missing
"""

PAIRS = """
SELECT text, item, 1 AS label, 'purchase' AS source, buyers AS evidence, '' AS replaced, split FROM positives
UNION ALL
SELECT c.text, c.item, 0 AS label, c.source, 0 AS evidence, c.replaced, s.split FROM chosen c JOIN {splits}
ORDER BY item, text
"""
SPLITS_OF_ITEMS = "items s ON s.item = c.item"
SPLITS_OF_SLOTS = "slots s ON s.item = c.item AND s.source = c.slot_of AND s.slot = c.slot"
