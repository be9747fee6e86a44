"""The audit: whether a scan can be trusted, how its values become HU, and what is worth knowing of it.

:mod:`~ctgrounding.ingest.audit.kinds` names what can be found. :mod:`~ctgrounding.ingest.audit.verdict` judges
one scan's values and geometry, :mod:`~ctgrounding.ingest.audit.organs` its organ map,
:mod:`~ctgrounding.ingest.audit.copies` all scans together. Ingest and ``ctgrounding audit`` give the same
verdicts because both go through :func:`ctgrounding.ingest.examination.examine`.
"""
