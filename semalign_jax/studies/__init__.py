"""From embeddings to what goes into a manuscript: resumable runs, tables, figures, reports."""
