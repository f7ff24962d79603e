"""Columns."""



RESULT_COLUMNS = tuple(
    "notebook dataset network seed chooser factors parameters parameters_kept macs macs_kept bytes"
    " latency_ms_1 latency_ms_64 accuracy f1 seconds_to_find evaluations".split()
)
PROVENANCE_COLUMNS = tuple("address run_parameters data_fingerprint versions commit finished".split())
