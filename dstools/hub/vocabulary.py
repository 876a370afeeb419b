"""Words that the Hub knows in a card: tasks, relations, keys, and data sets with a leaderboard."""

# huggingface/huggingface.js, packages/tasks/src/pipelines.ts at fe42e68, 2026-08-21
TASKS = frozenset(
    """
    any-to-any audio-classification audio-text-to-text audio-to-audio automatic-speech-recognition
    depth-estimation document-question-answering feature-extraction fill-mask graph-ml
    image-classification image-feature-extraction image-segmentation image-text-to-image
    image-text-to-text image-text-to-video image-to-3d image-to-image image-to-text image-to-video
    keypoint-detection mask-generation multiple-choice object-detection other question-answering
    reinforcement-learning robotics sentence-similarity summarization table-question-answering
    table-to-text tabular-classification tabular-regression tabular-to-text text-classification
    text-generation text-ranking text-retrieval text-to-3d text-to-audio text-to-image
    text-to-speech text-to-video time-series-forecasting token-classification translation
    unconditional-image-generation video-classification video-text-to-text video-to-video
    visual-document-retrieval visual-question-answering voice-activity-detection
    zero-shot-classification
    zero-shot-image-classification zero-shot-object-detection
    """.split()  # noqa: SIM905
)

# huggingface/hub-docs, docs/hub/model-cards.md at 242f4a1, 2026-08-22
RELATIONS = ("adapter", "merge", "quantized", "finetune")

# Keys that the Hub or its client reads, with the types of huggingface_hub 2.4, ModelCardData:
# a text, a list of texts, either, or a list of tables. Other keys are of their authors.
TEXT = (
    "license",
    "license_name",
    "license_link",
    "base_model_relation",
    "library_name",
    "pipeline_tag",
    "model_name",
    "new_version",
    "thumbnail",
)
TEXTS = ("tags", "metrics", "buckets")
EITHER = ("base_model", "datasets", "language")
TABLES = ("widget", "model-index")
KEYS = (*TEXT, *TEXTS, *EITHER, *TABLES)
MISSPELLED = {
    "licence": "license",
    "licence_name": "license_name",
    "licence_link": "license_link",
    "license_url": "license_link",
    "base_models": "base_model",
    "dataset": "datasets",
    "languages": "language",
    "metric": "metrics",
    "tag": "tags",
}

# Benchmarks that the Hub's own documentation names: huggingface/hub-docs,
# docs/hub/eval-results.md at 242f4a1. Results of other data sets are not shown.
BENCHMARKS = (
    "Idavidrein/gpqa",
    "MathArena/aime_2026",
    "TIGER-Lab/MMLU-Pro",
    "cais/hle",
    "openai/gsm8k",
)
