-- Views over the index tables. The tables come from the files: see index.py; the columns of all of
-- them are documented in docs/sql.md.

CREATE VIEW patients AS
SELECT
    patient_id,
    min(cohort) AS cohort,
    count(*) AS n_images,
    list(DISTINCT label ORDER BY label) AS labels
FROM images
GROUP BY patient_id
ORDER BY patient_id;
