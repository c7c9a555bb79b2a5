"""What is shown and stored of patients: no name in a message, no header of a DICOM file."""

import numpy as np
import pytest

import embedcache
from embedcache.data.manifest import write_manifest
from embedcache.errors import EmbedcacheError
from embedcache.testing import write_cohort


def dicom(path, canary):
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.dataset.Dataset()
    dataset.PatientName = dataset.PatientID = dataset.InstitutionName = canary
    dataset.StudyDescription = dataset.PatientComments = canary
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.6.1"
    dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows = dataset.Columns = 16
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = np.arange(256, dtype=np.uint8).tobytes()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)


def test_no_header_of_a_dicom_file_gets_into_a_store_or_an_export(tmp_path):
    dicom(tmp_path / "scan.dcm", "CANARY")
    row = {"image_id": "1", "path": "scan.dcm", "patient_id": "7", "label": "a", "cohort": "home"}
    write_manifest(tmp_path / "data_manifest.csv", [row])
    project = embedcache.open(tmp_path)
    assert project.extract("pixels").tallies[0].n_written == 1
    project.export("pixels", tmp_path / "rows.parquet")
    project.sql("FROM images")
    files = [file for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".dcm"]
    assert len(files) > 6
    assert not [file for file in files if b"CANARY" in file.read_bytes()]


def test_messages_of_a_pass_and_of_probes_name_no_patient(tmp_path, caplog):
    write_cohort(tmp_path, cohorts=("home", "abroad"))
    manifest = tmp_path / "data_manifest.csv"
    lines = manifest.read_text().splitlines()
    # Ids that no image, path or cohort holds.
    lines = [line.replace(",home-", ",Canary-h").replace(",abroad-", ",Canary-a") for line in lines]
    manifest.write_text("\n".join(lines) + "\n")
    project = embedcache.open(tmp_path)
    patients = project.images()["patient_id"].to_pylist()
    assert all(patient.startswith("Canary-") for patient in patients)
    next(tmp_path.glob("images/*")).write_bytes(b"no image")
    messages = []
    report = project.extract("pixels", on_message=messages.append)
    messages += [str(report), repr(report), *(reason for _, reason in report.tallies[0].failures)]
    outcomes = project.probe("pixels", n_resamples=200, on_message=messages.append)
    messages += [str(outcomes), *(note for outcome in outcomes for note in outcome.record.notes)]
    manifest.write_text(manifest.read_text().replace("Canary-a000", "Canary-h000"))
    (tmp_path / "folds.csv").write_text("patient_id,fold\nCanary-h000,0\nCanary-h000,1\n")
    for options in ({}, {"folds": tmp_path / "folds.csv"}):
        with pytest.raises(EmbedcacheError) as raised:
            embedcache.open(tmp_path).probe("pixels", n_resamples=200, **options)
        messages.append(str(raised.value))
    messages += [record.getMessage() for record in caplog.records]
    assert len(messages) > 5
    assert not [message for message in messages if "Canary" in message]
