-- The catalog: native tables in `main` and `internal`, and views over them that name no file. The
-- columns of everything in `main` are documented in docs/sql.md. `images` is made from the manifest,
-- whose columns it has: see index.py.

CREATE SCHEMA internal;

CREATE TABLE internal.meta (schema_version INTEGER, duckdb_version VARCHAR);

-- The items that the tables are made of. `row_key` is the value by which an item's rows are found in
-- its tables: a fingerprint, a folds_id, a run_id; NULL where the item has no row.
CREATE TABLE internal.sources (kind VARCHAR, name VARCHAR, stamp VARCHAR, row_key VARCHAR);

-- The sum of the hashes of all rows of a table, which changes with any cell of it.
CREATE TABLE internal.digests (table_name VARCHAR, digest HUGEINT);

-- What the stores hold, by digest of the image's bytes: it stays as it is when the manifest changes.
CREATE TABLE internal.stored_rows (
    fingerprint VARCHAR,
    sha256 VARCHAR,
    segment VARCHAR,
    "row" INTEGER
);

CREATE TABLE internal.stored_failures (fingerprint VARCHAR, sha256 VARCHAR, reason VARCHAR);

CREATE TABLE encoders (
    encoder VARCHAR,
    fingerprint VARCHAR,
    dim INTEGER,
    n_rows BIGINT,
    n_failed BIGINT,
    size_bytes BIGINT,
    architecture VARCHAR,
    output VARCHAR,
    "precision" VARCHAR,
    weights_sha256 VARCHAR,
    licence VARCHAR,
    preprocess VARCHAR,
    seconds VARCHAR,
    created VARCHAR
);

CREATE TABLE folds (folds_id VARCHAR, patient_id VARCHAR, fold INTEGER, "value" VARCHAR);

CREATE TABLE runs (
    run_id VARCHAR,
    kind VARCHAR,
    task VARCHAR,
    encoder VARCHAR,
    fingerprint VARCHAR,
    probe VARCHAR,
    protocol VARCHAR,
    rule VARCHAR,
    regime VARCHAR,
    external_by VARCHAR,
    label_column VARCHAR,
    train_cohort VARCHAR,
    n_folds INTEGER,
    folds_id VARCHAR,
    seed BIGINT,
    n_resamples INTEGER,
    created VARCHAR,
    seconds DOUBLE,
    question VARCHAR,
    method VARCHAR,
    settings VARCHAR,
    results VARCHAR
);

CREATE TABLE predictions (
    run_id VARCHAR,
    image_id VARCHAR,
    patient_id VARCHAR,
    cohort VARCHAR,
    role VARCHAR,
    fold INTEGER,
    label VARCHAR,
    predicted VARCHAR,
    predicted_masked VARCHAR,
    probability DOUBLE,
    p MAP(VARCHAR, DOUBLE),
    temperature DOUBLE,
    correct BOOLEAN,
    "value" DOUBLE
);

CREATE TABLE fold_predictions AS FROM predictions WITH NO DATA;

CREATE TABLE metrics (
    run_id VARCHAR,
    cohort VARCHAR,
    role VARCHAR,
    scoring VARCHAR,
    level VARCHAR,
    metric VARCHAR,
    label VARCHAR,
    "value" DOUBLE,
    low DOUBLE,
    high DOUBLE,
    n_patients INTEGER,
    n_images INTEGER
);

CREATE TABLE audits (
    audit_id VARCHAR,
    created VARCHAR,
    verdict VARCHAR,
    label_column VARCHAR,
    train_cohort VARCHAR,
    encoders VARCHAR,
    question VARCHAR,
    n_patients INTEGER,
    n_images INTEGER,
    seconds DOUBLE
);

CREATE TABLE audit (
    audit_id VARCHAR,
    severity VARCHAR,
    kind VARCHAR,
    "message" VARCHAR,
    n_images INTEGER,
    image_id VARCHAR,
    twin VARCHAR,
    similarity DOUBLE,
    label VARCHAR,
    predicted VARCHAR,
    probability DOUBLE,
    margin DOUBLE
);

CREATE TABLE audit_scores (
    audit_id VARCHAR,
    target VARCHAR,
    source VARCHAR,
    split VARCHAR,
    "value" DOUBLE,
    low DOUBLE,
    high DOUBLE,
    chance DOUBLE,
    n_values INTEGER,
    n_patients INTEGER,
    n_images INTEGER
);

CREATE TABLE comparisons (
    comparison_id VARCHAR,
    created VARCHAR,
    statistics VARCHAR,
    task VARCHAR,
    metric VARCHAR,
    level VARCHAR,
    scoring VARCHAR,
    by_column VARCHAR,
    margin DOUBLE,
    n_resamples INTEGER,
    seed BIGINT,
    n_runs INTEGER,
    notes VARCHAR[]
);

CREATE TABLE standings (
    comparison_id VARCHAR,
    cohort VARCHAR,
    role VARCHAR,
    name VARCHAR,
    run_id VARCHAR,
    run_ids VARCHAR[],
    n_repeats INTEGER,
    "value" DOUBLE,
    low DOUBLE,
    high DOUBLE,
    rank DOUBLE,
    p_best DOUBLE,
    groups INTEGER[],
    "values" DOUBLE[],
    n_patients INTEGER,
    n_images INTEGER
);

CREATE TABLE pairs (
    comparison_id VARCHAR,
    cohort VARCHAR,
    better VARCHAR,
    worse VARCHAR,
    difference DOUBLE,
    low DOUBLE,
    high DOUBLE,
    p DOUBLE,
    p_corrected DOUBLE,
    verdict VARCHAR,
    p_equal DOUBLE,
    error_patients DOUBLE,
    error_repeats DOUBLE,
    patients_needed BIGINT,
    "values" DOUBLE[]
);

CREATE TABLE drops (
    comparison_id VARCHAR,
    cohort VARCHAR,
    name VARCHAR,
    part VARCHAR,
    "value" DOUBLE,
    low DOUBLE,
    high DOUBLE
);

CREATE TABLE class_shares (
    comparison_id VARCHAR,
    cohort VARCHAR,
    name VARCHAR,
    label VARCHAR,
    home DOUBLE,
    outside DOUBLE,
    estimated DOUBLE
);

CREATE TABLE parts (
    comparison_id VARCHAR,
    cohort VARCHAR,
    name VARCHAR,
    part VARCHAR,
    "value" DOUBLE,
    low DOUBLE,
    high DOUBLE,
    n_patients INTEGER,
    n_images INTEGER
);

CREATE TABLE subgroups (
    comparison_id VARCHAR,
    cohort VARCHAR,
    name VARCHAR,
    subgroup VARCHAR,
    "value" DOUBLE,
    low DOUBLE,
    high DOUBLE,
    p DOUBLE,
    p_corrected DOUBLE,
    p_worst DOUBLE,
    is_worst BOOLEAN,
    worst_low DOUBLE,
    worst_high DOUBLE,
    n_patients INTEGER,
    classes VARCHAR[],
    reason VARCHAR
);

CREATE VIEW patients AS
SELECT
    patient_id,
    min(cohort) AS cohort,
    count(*) AS n_images,
    list(DISTINCT label ORDER BY label) AS labels
FROM images
GROUP BY patient_id
ORDER BY patient_id;

CREATE VIEW embedding_rows AS
SELECT
    images.image_id,
    images.patient_id,
    images.cohort,
    encoders.encoder,
    encoders.fingerprint,
    stored_rows.segment,
    stored_rows."row"
FROM images
JOIN internal.stored_rows ON stored_rows.sha256 = images.sha256
JOIN encoders ON encoders.fingerprint = stored_rows.fingerprint;

CREATE VIEW failures AS
SELECT images.image_id, encoders.encoder, encoders.fingerprint, stored_failures.reason
FROM images
JOIN internal.stored_failures ON stored_failures.sha256 = images.sha256
JOIN encoders ON encoders.fingerprint = stored_failures.fingerprint
UNION ALL
SELECT images.image_id, encoders.encoder, encoders.fingerprint, 'its file is not here' AS reason
FROM images
CROSS JOIN encoders
WHERE images.sha256 IS NULL;
