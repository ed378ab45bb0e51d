"""The tables of a recording, as SQL, for every schema that was ever written.

A schema's text is frozen when it is released: a file has to match it to the letter, and a file of that schema is in
tests/recordings/ for ever. A change makes the next schema.

Texts and groups of numbers that requests share are stored once, and a request names them by their ids; `request` is a
view that puts a request together again, so that any SQL tool reads it as one table.
"""

from __future__ import annotations

SCHEMA = 3  # what this phptrace writes
SUFFIX = ".phptrace"
# What SQLite keeps beside a recording that is being written.
SIDE_FILES = ("-wal", "-shm", "-journal")
# "PTRC": identifies the file as ours in SQLite's header (PRAGMA application_id).
APPLICATION_ID = 0x50545243

_SCHEMA_1 = {
    "request": """CREATE TABLE request (
  id INTEGER PRIMARY KEY,
  host TEXT NOT NULL,
  pid INTEGER NOT NULL,
  pool TEXT,
  nth INTEGER NOT NULL,
  started_ns INTEGER,
  duration_ns INTEGER,
  cpu_ns INTEGER,
  method TEXT,
  uri TEXT,
  script TEXT,
  status INTEGER,
  ending TEXT NOT NULL,
  anon_before INTEGER,
  anon_end INTEGER,
  anon_after INTEGER,
  file_before INTEGER,
  file_after INTEGER,
  shmem_before INTEGER,
  shmem_after INTEGER,
  anon_peak INTEGER,
  zend_used_end INTEGER,
  zend_peak INTEGER,
  zend_real_before INTEGER,
  zend_real_peak INTEGER,
  zend_real_end INTEGER,
  zend_real_after INTEGER,
  memory_limit INTEGER,
  vm_before INTEGER,
  vm_after INTEGER,
  map_bytes INTEGER,
  map_calls INTEGER,
  unmap_bytes INTEGER,
  unmap_calls INTEGER,
  brk_bytes INTEGER,
  brk_calls INTEGER,
  minor_faults INTEGER,
  major_faults INTEGER,
  notes TEXT
) STRICT""",
    "worker": """CREATE TABLE worker (
  pid INTEGER NOT NULL,
  start_ticks INTEGER,
  pool TEXT,
  php_version TEXT,
  born_ns INTEGER,
  died_ns INTEGER,
  exit TEXT,
  UNIQUE (pid, start_ticks)
) STRICT""",
    "loss": """CREATE TABLE loss (
  at_ns INTEGER NOT NULL,
  lost INTEGER NOT NULL,
  why TEXT NOT NULL
) STRICT""",
    "meta": """CREATE TABLE meta (
  name TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT""",
}
# Call stacks.
_SCHEMA_2 = {
    **_SCHEMA_1,
    "frame": """CREATE TABLE frame (
  id INTEGER PRIMARY KEY,
  kind TEXT NOT NULL,
  name TEXT NOT NULL,
  file TEXT,
  line INTEGER
) STRICT""",
    "stack": """CREATE TABLE stack (
  id INTEGER PRIMARY KEY,
  parent INTEGER,
  frame INTEGER NOT NULL
) STRICT""",
    "growth": """CREATE TABLE growth (
  request INTEGER NOT NULL,
  stack INTEGER NOT NULL,
  weight TEXT NOT NULL,
  bytes INTEGER NOT NULL,
  samples INTEGER NOT NULL
) STRICT""",
}
# Requests by parts that many of them share: 70 bytes a request instead of 179, and 19 values bound instead of 38.
_SCHEMA_3 = {
    "worker": _SCHEMA_1["worker"],
    "loss": _SCHEMA_1["loss"],
    "meta": _SCHEMA_1["meta"],
    "frame": _SCHEMA_2["frame"],
    "stack": _SCHEMA_2["stack"],
    "growth": """CREATE TABLE growth (
  request INTEGER NOT NULL,
  stack INTEGER NOT NULL,
  metric TEXT NOT NULL,
  bytes INTEGER NOT NULL,
  samples INTEGER NOT NULL
) STRICT""",
    "script": """CREATE TABLE script (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL
) STRICT""",
    "process": """CREATE TABLE process (
  id INTEGER PRIMARY KEY,
  host TEXT NOT NULL,
  pid INTEGER NOT NULL,
  pool TEXT,
  start_ticks INTEGER,
  master_pid INTEGER
) STRICT""",
    "place": """CREATE TABLE place (
  id INTEGER PRIMARY KEY,
  container TEXT,
  container_id TEXT,
  cgroup TEXT,
  namespaces TEXT,
  root TEXT
) STRICT""",
    "page": """CREATE TABLE page (
  id INTEGER PRIMARY KEY,
  method TEXT,
  uri TEXT,
  script INTEGER
) STRICT""",
    "outcome": """CREATE TABLE outcome (
  id INTEGER PRIMARY KEY,
  status INTEGER,
  ending TEXT NOT NULL,
  notes TEXT,
  memory_limit INTEGER
) STRICT""",
    "mappings": """CREATE TABLE mappings (
  id INTEGER PRIMARY KEY,
  file_before INTEGER,
  file_after INTEGER,
  shmem_before INTEGER,
  shmem_after INTEGER,
  vm_before INTEGER,
  vm_after INTEGER
) STRICT""",
    "heap": """CREATE TABLE heap (
  id INTEGER PRIMARY KEY,
  zend_real_before INTEGER,
  zend_real_peak INTEGER,
  zend_real_end INTEGER,
  zend_real_after INTEGER
) STRICT""",
    "calls": """CREATE TABLE calls (
  id INTEGER PRIMARY KEY,
  map_bytes INTEGER,
  map_calls INTEGER,
  unmap_bytes INTEGER,
  unmap_calls INTEGER,
  brk_bytes INTEGER,
  brk_calls INTEGER
) STRICT""",
    "native": """CREATE TABLE native (
  id INTEGER PRIMARY KEY,
  native_alloc_bytes INTEGER,
  native_alloc_calls INTEGER,
  native_free_bytes INTEGER,
  native_free_calls INTEGER,
  native_freed_earlier INTEGER,
  native_mapped_bytes INTEGER,
  native_between_bytes INTEGER,
  native_kept INTEGER
) STRICT""",
    "released": """CREATE TABLE released (
  pid INTEGER NOT NULL,
  started_ns INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  blocks INTEGER NOT NULL,
  PRIMARY KEY (pid, started_ns)
) STRICT, WITHOUT ROWID""",
    "freed_earlier": """CREATE TABLE freed_earlier (
  request INTEGER NOT NULL,
  owner_started_ns INTEGER NOT NULL,
  resized INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  PRIMARY KEY (request, owner_started_ns, resized)
) STRICT, WITHOUT ROWID""",
    "forked": """CREATE TABLE forked (
  pid INTEGER NOT NULL,
  parent_pid INTEGER NOT NULL,
  started_ns INTEGER,
  ended_ns INTEGER,
  anon INTEGER
) STRICT""",
    "look": """CREATE TABLE look (
  pid INTEGER NOT NULL,
  start_ticks INTEGER NOT NULL,
  at_ns INTEGER NOT NULL,
  took_ns INTEGER NOT NULL,
  anon INTEGER,
  malloc_in_use INTEGER,
  malloc_uncertain INTEGER,
  malloc_resident INTEGER,
  zend_resident INTEGER,
  settled INTEGER NOT NULL,
  in_accept INTEGER NOT NULL,
  requests INTEGER,
  why TEXT
) STRICT""",
    "footprint": """CREATE TABLE footprint (
  pid INTEGER NOT NULL,
  start_ticks INTEGER NOT NULL,
  at_ns INTEGER NOT NULL,
  took_ns INTEGER NOT NULL,
  idle INTEGER NOT NULL,
  rss INTEGER NOT NULL,
  pss INTEGER NOT NULL,
  pss_shmem INTEGER,
  private_clean INTEGER NOT NULL,
  private_dirty INTEGER NOT NULL,
  anonymous INTEGER NOT NULL,
  shmem INTEGER,
  swap_pss INTEGER,
  page_tables INTEGER
) STRICT""",
    "request_row": """CREATE TABLE request_row (
  id INTEGER PRIMARY KEY,
  page INTEGER NOT NULL,
  process INTEGER NOT NULL,
  place INTEGER NOT NULL,
  outcome INTEGER NOT NULL,
  mappings INTEGER NOT NULL,
  heap INTEGER NOT NULL,
  calls INTEGER NOT NULL,
  native INTEGER NOT NULL,
  nth INTEGER NOT NULL,
  started_ns INTEGER,
  duration_ns INTEGER,
  cpu_ns INTEGER,
  anon_before INTEGER,
  anon_end INTEGER,
  anon_after INTEGER,
  anon_peak INTEGER,
  zend_used_end INTEGER,
  zend_peak INTEGER,
  minor_faults INTEGER,
  major_faults INTEGER
) STRICT""",
    "request": """CREATE VIEW request AS SELECT
  request_row.id,
  process.host,
  process.pid,
  process.pool,
  request_row.nth,
  request_row.started_ns,
  request_row.duration_ns,
  request_row.cpu_ns,
  page.method,
  page.uri,
  script.name AS script,
  outcome.status,
  outcome.ending,
  request_row.anon_before,
  request_row.anon_end,
  request_row.anon_after,
  mappings.file_before,
  mappings.file_after,
  mappings.shmem_before,
  mappings.shmem_after,
  request_row.anon_peak,
  request_row.zend_used_end,
  request_row.zend_peak,
  heap.zend_real_before,
  heap.zend_real_peak,
  heap.zend_real_end,
  heap.zend_real_after,
  outcome.memory_limit,
  mappings.vm_before,
  mappings.vm_after,
  calls.map_bytes,
  calls.map_calls,
  calls.unmap_bytes,
  calls.unmap_calls,
  calls.brk_bytes,
  calls.brk_calls,
  native.native_alloc_bytes,
  native.native_alloc_calls,
  native.native_free_bytes,
  native.native_free_calls,
  native.native_freed_earlier,
  native.native_mapped_bytes,
  native.native_between_bytes,
  native.native_kept,
  CASE WHEN native.native_kept IS NULL THEN NULL ELSE coalesce(released.bytes, 0) END AS native_released,
  request_row.minor_faults,
  request_row.major_faults,
  outcome.notes,
  process.start_ticks,
  process.master_pid,
  place.container,
  place.container_id,
  place.cgroup,
  place.namespaces,
  place.root
FROM request_row
  LEFT JOIN process ON process.id = request_row.process
  LEFT JOIN place ON place.id = request_row.place
  LEFT JOIN page ON page.id = request_row.page
  LEFT JOIN outcome ON outcome.id = request_row.outcome
  LEFT JOIN mappings ON mappings.id = request_row.mappings
  LEFT JOIN heap ON heap.id = request_row.heap
  LEFT JOIN calls ON calls.id = request_row.calls
  LEFT JOIN native ON native.id = request_row.native
  LEFT JOIN script ON script.id = page.script
  LEFT JOIN released ON released.pid = process.pid AND released.started_ns = request_row.started_ns""",
}
SCHEMAS = {1: _SCHEMA_1, 2: _SCHEMA_2, 3: _SCHEMA_3}
# The parts of a request that have tables of their own, which request_row names by their ids.
PARTS = ("page", "process", "place", "outcome", "mappings", "heap", "calls", "native")
