"""Generated from schemas/ by python -m aima_lib.generate. Do not edit."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict


class Allocation(TypedDict):
    """Something that takes memory, or has the promise of it."""

    kind: Literal['engine', 'start', 'slot']
    id: str
    type: str
    device_id: str | None
    status: str
    planned_bytes: int | None
    measured_bytes: int | None
    held_bytes: int
    predicted_bytes: int | None
    model_id: str | None
    service_id: str | None
    priority: int
    preemptible: bool
    since: str | None


class App(TypedDict):
    """A Docker application that is installed, or was and left data."""

    id: str
    name: str
    template: str
    title: str
    category: str
    status: Literal['installing', 'starting', 'running', 'stopping', 'stopped', 'failed', 'updating', 'uninstalling', 'uninstalled', 'unknown']
    health: Literal['healthy', 'unhealthy', 'unknown']
    reason: str | None
    url: str | None
    ports: list[dict[str, Any]]
    volumes: list[dict[str, Any]]
    containers: list[dict[str, Any]]
    link: dict[str, Any] | None
    logins: list[dict[str, Any]]
    config: dict[str, Any]
    metrics: dict[str, Any]
    restarts: int
    created_at: str
    updated_at: str


class AppTemplate(TypedDict):
    """An application that can be installed."""

    name: str
    title: str
    description: str
    category: str
    license: str | None
    evidence: str
    link: str | None
    images: list[dict[str, Any]]
    ports: list[dict[str, Any]]
    volumes: list[str]
    logins: list[str]
    gpu: Literal['no', 'optional', 'required']
    memory_bytes: int | None


class AuditEntry(TypedDict):
    """One line of the audit log."""

    seq: int
    time: str
    entry: Literal['intent', 'outcome', 'refusal']
    unit: str
    caller: str
    code: str | None
    intent: int | None
    run_id: str | None
    plan_id: str | None
    duration_ms: float | None
    arguments: str | None
    correlation_id: str | None
    causation_id: str | None


class AvailableModel(TypedDict):
    """Something inference.* can be asked for, or could."""

    id: str
    model_id: str
    status: Literal['ready', 'loadable', 'unavailable']
    tasks: list[Literal['chat', 'complete', 'embed', 'rerank', 'transcribe', 'synthesize', 'generate_image', 'generate_video', 'detect']]
    tools: bool | None
    json_schema: bool | None
    service_id: str | None
    instance_id: str | None
    reason: str | None


class Benchmark(TypedDict):
    """What a served model did under load, with the hardware and the versions it is true for."""

    id: str
    created_at: str
    service_id: str
    model_id: str
    model_digest: str | None
    engine: str
    engine_version: str | None
    options: EngineOptions
    prompts: int
    prompts_digest: str
    max_tokens: int
    concurrency: int
    hardware: dict[str, Any]
    requests: int
    failures: int
    completion_tokens: int
    prompt_tokens: int
    duration_seconds: float
    tokens_per_second: float
    ttft_ms: dict[str, Any]
    memory_bytes: int | None


class Blob(TypedDict):
    """Bytes that a call made or that were given, kept for a while."""

    id: str
    uri: str
    media_type: str
    size_bytes: int
    sha256: str
    source: str
    created_at: str
    expires_at: str


class Change(TypedDict):
    """What a call would change. Of the figures, 0 is none and null is unknown."""

    creates: list[Thing]
    deletes: list[Thing]
    starts: list[Thing]
    stops: list[Thing]
    used_by: list[Thing]
    download_bytes: int | None
    freed_bytes: int | None
    memory_bytes: int | None
    notes: NotRequired[list[str]]


class ChatMessage(TypedDict):
    """One message of a conversation, in OpenAI's shape."""

    role: Literal['system', 'developer', 'user', 'assistant', 'tool']
    content: NotRequired[str | list[dict[str, Any]] | None]
    name: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]
    tool_call_id: NotRequired[str]


class Device(TypedDict):
    """A processor or an accelerator of this machine."""

    id: str
    name: str
    vendor: str | None
    type: Literal['cpu', 'gpu', 'npu']
    architecture: str | None
    memory: dict[str, Any]
    cores: dict[str, Any] | None
    driver: str | None
    uuid: str | None
    capabilities: list[str]
    source: str
    unknown: dict[str, Any]


class DeviceIssue(TypedDict):
    """Something wrong with a device, or with the machine's drivers."""

    device_id: str | None
    code: str
    severity: Literal['warning', 'critical']
    message: str
    evidence: dict[str, Any]


class DeviceSample(TypedDict):
    """What a device did at one moment."""

    time: str
    utilization: float | None
    temperature_celsius: float | None
    power_watts: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    unknown: NotRequired[dict[str, Any]]


class Engine(TypedDict):
    """A program that runs models."""

    name: str
    title: str
    version: str | None
    installed: bool
    status: Literal['running', 'available', 'unavailable']
    reason: str | None
    formats: list[str]
    tasks: list[Literal['chat', 'complete', 'embed', 'rerank', 'transcribe', 'synthesize', 'generate_image', 'generate_video', 'detect']]
    launchers: list[str]
    container: NotRequired[dict[str, Any] | None]
    instances: list[EngineInstance]


class EngineFeatures(TypedDict):
    """What an engine can do."""

    name: str
    source: Literal['engine', 'declared']
    instance_id: str | None
    formats: list[str]
    tasks: list[Literal['chat', 'complete', 'embed', 'rerank', 'transcribe', 'synthesize', 'generate_image', 'generate_video', 'detect']]
    options: list[str]
    option_schemas: dict[str, Any]
    dialects: list[str]
    modalities: list[str]
    context_length: int | None
    parallel: int | None
    tools: bool | None


class EngineOptions(TypedDict):
    """How it runs, by the options that engine.features lists, e.g. context_length, parallel."""

    launcher: NotRequired[Literal['process', 'docker', 'ray']]
    context_length: NotRequired[int]
    parallel: NotRequired[int]
    threads: NotRequired[int]
    gpu_layers: NotRequired[int]
    batch_size: NotRequired[int]
    flash_attention: NotRequired[Literal['auto', 'on', 'off']]
    cache_type: NotRequired[Literal['f32', 'f16', 'bf16', 'q8_0', 'q5_1', 'q5_0', 'q4_1', 'q4_0']]
    embedding: NotRequired[bool]
    pooling: NotRequired[Literal['mean', 'cls', 'last']]
    chat_template: NotRequired[Literal['qwen-tools']]
    rpc: NotRequired[list[str]]
    seed: NotRequired[int]
    dtype: NotRequired[Literal['auto', 'float16', 'bfloat16', 'float32']]
    memory_fraction: NotRequired[float]
    tensor_parallel: NotRequired[int]


class Error(TypedDict):
    """What went wrong, for a program and for a person."""

    code: str
    message: str
    retryable: bool
    hint: NotRequired[str]
    next: NotRequired[list[dict[str, Any]]]
    details: NotRequired[dict[str, Any]]


class Event(TypedDict):
    """Something that happened, numbered."""

    seq: int
    type: str
    time: str
    subject: str | None
    correlation_id: str | None
    causation_id: str | None
    payload: dict[str, Any]


class RecipeEvidence(TypedDict):
    """How it is known that a recipe works so."""

    kind: Literal['measured here', 'measured elsewhere', 'unverified']
    weight: float
    text: str
    benchmark_id: str | None
    figures: dict[str, Any] | None


class EngineInstance(TypedDict):
    """One engine process with one model."""

    id: str
    engine: str
    model_id: str
    status: Literal['starting', 'ready', 'failed', 'stopped']
    health: Literal['healthy', 'unhealthy', 'unknown']
    pid: int | None
    keeper_pid: int | None
    container_id: NotRequired[str | None]
    started_at: str
    ready_at: str | None
    base_url: str | None
    tasks: list[Literal['chat', 'complete', 'embed', 'rerank', 'transcribe', 'synthesize', 'generate_image', 'generate_video', 'detect']]
    tools: bool | None
    json_schema: NotRequired[bool | None]
    device: str | None
    placement: Placement
    options: EngineOptions
    service_id: str | None
    predicted_bytes: NotRequired[int | None]
    log_path: str
    error: str | None


class Key(TypedDict):
    """What is known of a key: never the key itself."""

    id: str
    name: str
    scopes: list[str]
    models: list[str] | None
    profile: str | None
    priority: Literal['low', 'normal', 'high']
    prefix: str
    status: Literal['active', 'expired', 'revoked']
    created_at: str
    created_by: str
    expires_at: str | None
    last_used_at: str | None
    revoked_at: str | None
    limits: dict[str, Any]
    usage: dict[str, Any]


class Model(TypedDict):
    """Weights on disk, ready for an engine to load."""

    id: str
    name: str
    type: str | None
    format: Literal['gguf', 'safetensors', 'onnx', 'tensorrt', 'pytorch', 'ctranslate2', 'builtin', 'remote']
    status: Literal['ready', 'corrupt']
    size_bytes: int
    digest: str | None
    quantization: str | None
    parameters: int | None
    active_parameters: int | None
    context_length: int | None
    architecture: str | None
    license: str | None
    files: list[dict[str, Any]]
    capabilities: list[str]
    modalities: list[Literal['text', 'image', 'audio']]
    chat_template: dict[str, Any] | None
    warnings: list[str]
    source: dict[str, Any]
    requirements: dict[str, Any]
    defaults: dict[str, Any]
    geometry: dict[str, Any]
    created_at: str
    verified_at: str | None


class Pipeline(TypedDict):
    """Units joined into a larger one: what it is called, what it calls, whether it can run here."""

    id: str
    description: str
    source: Literal['user', 'builtin']
    shadows_builtin: bool
    version: int | None
    steps: list[str]
    units: list[str]
    runnable: bool
    reason: str | None
    created_at: str | None
    updated_at: str | None
    created_by: str | None


class PipelineIssue(TypedDict):
    """Something in a document that cannot work."""

    path: str
    line: NotRequired[int | None]
    column: NotRequired[int | None]
    message: str
    suggestion: NotRequired[str | None]


class PipelineStep(TypedDict):
    """How far a step of a run is."""

    id: str
    unit: str
    status: Literal['pending', 'started', 'retrying', 'waiting', 'succeeded', 'failed', 'skipped', 'cancelled', 'unknown']
    attempts: int
    started_at: str | None
    finished_at: str | None
    duration_ms: int | None
    approval_id: str | None
    error: dict[str, Any] | None
    items: dict[str, Any] | None
    compensation: Literal['started', 'retrying', 'waiting', 'succeeded', 'failed', 'skipped', 'cancelled', 'unknown', 'none']


class Placement(TypedDict):
    """Where an engine computes, and why not where it was meant to."""

    device: str | None
    node: NotRequired[str]
    fallback: str | None


class Plan(TypedDict):
    """A call that is not done yet: what it would change, and what it takes to do it."""

    id: str
    unit: str
    arguments: dict[str, Any]
    caller: str
    policy: Literal['auto', 'plan', 'approve']
    status: Literal['open', 'approved', 'denied', 'applied', 'expired']
    changes: Change
    summary: str
    created_at: str
    expires_at: str
    decided_by: str | None
    reason: str | None
    run_id: NotRequired[str | None]
    usual_seconds: NotRequired[float | None]
    token: NotRequired[str]


class Progress(TypedDict):
    """How far a run is."""

    phase: str
    message: str
    completed: NotRequired[float | None]
    total: NotRequired[float | None]
    parts: NotRequired[list[dict[str, Any]]]


class RecipeSummary(TypedDict):
    """What a list tells of a recipe."""

    id: str
    title: str
    type: Literal['llm', 'vlm', 'asr', 'tts', 'embedding', 'rerank', 'diffusion', 'detection', 'video_gen']
    tags: list[str]
    engines: list[str]
    sources: list[str]
    license: str
    size_bytes: int
    memory_bytes: int
    source: Literal['builtin', 'user']
    created_at: str | None


class Run(TypedDict):
    """One durable call: what was asked, how far it is, what came of it."""

    id: str
    unit: str
    status: Literal['running', 'succeeded', 'failed', 'cancelled', 'interrupted']
    input: dict[str, Any]
    caller: NotRequired[str]
    idempotency_key: NotRequired[str | None]
    attempts: int
    progress: dict[str, Any] | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    parent: NotRequired[str | None]
    cancel_requested_at: NotRequired[str]
    trace_id: NotRequired[str | None]
    correlation_id: NotRequired[str | None]
    causation_id: NotRequired[str | None]
    created_at: str
    updated_at: NotRequired[str]
    finished_at: str | None


class Secret(TypedDict):
    """What is told of a secret: everything but its value."""

    name: str
    status: Literal['ready', 'lost']
    used_by: list[str]
    created_at: str
    updated_at: str


class Service(TypedDict):
    """A model served for as long as it is wanted."""

    id: str
    name: str
    model_id: str
    engine: str
    options: EngineOptions
    status: Literal['starting', 'running', 'stopped', 'failed', 'stopping']
    health: Literal['healthy', 'degraded', 'unhealthy', 'unknown']
    desired_replicas: int
    ready_replicas: int
    endpoints: list[dict[str, Any]]
    placement: dict[str, Any] | None
    metrics: ServiceMetrics
    idle_unload_seconds: float | None
    pinned: bool
    priority: int
    group: str | None
    unloaded: bool
    autoscale: dict[str, Any] | None
    instance_id: str
    error: str | None
    created_at: str


class ServiceMetrics(TypedDict):
    """What a service did in the last minute."""

    requests_per_second: float
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    tokens_per_second: float | None
    error_rate: float | None
    queue_depth: int
    waiting: int
    retried: int
    window_seconds: float


class Slot(TypedDict):
    """Memory of a device that is kept for something AIMA does not start itself, until it is released."""

    id: str
    name: str
    type: str
    device_id: str
    memory_bytes: int
    gpu_fraction: float | None
    priority: int
    preemptible: bool
    status: Literal['reserved', 'in_use']
    pid: int | None
    held_bytes: int
    measured_bytes: int | None
    reason: str | None
    created_at: str


class Thing(TypedDict):
    """Something AIMA keeps."""

    kind: str
    id: str


class Timings(TypedDict):
    """How long an answer took."""

    queue_ms: float | None
    ttft_ms: float | None
    total_ms: float
    tokens_per_second: float | None


class ToolCall(TypedDict):
    """A function the model wants called."""

    id: str
    type: Literal['function']
    function: dict[str, Any]


class Usage(TypedDict):
    """Tokens, as the engine counted them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int | None


class VectorCollection(TypedDict):
    """A set of vectors of one length, searched together."""

    name: str
    dimensions: int
    count: int
    created_at: str
    updated_at: str


class AppGetResult(TypedDict):
    """AppGetResult"""

    app: App


class AppInstallResult(TypedDict):
    """AppInstallResult"""

    app: App


class AppListResult(TypedDict):
    """AppListResult"""

    apps: list[App]
    total: int


class AppLogsResult(TypedDict):
    """AppLogsResult"""

    lines: list[str]
    cursor: str


class AppStartResult(TypedDict):
    """AppStartResult"""

    app: App
    notes: list[str]


class AppStopResult(TypedDict):
    """AppStopResult"""

    app: App


class AppTemplatesResult(TypedDict):
    """AppTemplatesResult"""

    templates: list[AppTemplate]
    total: int


class AppUninstallResult(TypedDict):
    """AppUninstallResult"""

    app_id: str
    data_removed: bool
    kept_volumes: list[str]


class AppUpdateResult(TypedDict):
    """AppUpdateResult"""

    app: App


class ApprovalApproveResult(TypedDict):
    """ApprovalApproveResult"""

    approval: Plan


class ApprovalDenyResult(TypedDict):
    """ApprovalDenyResult"""

    approval: Plan


class ApprovalListResult(TypedDict):
    """ApprovalListResult"""

    approvals: list[Plan]
    total: int


class AuditListResult(TypedDict):
    """AuditListResult"""

    entries: list[AuditEntry]
    total: int


class AuditVerifyResult(TypedDict):
    """AuditVerifyResult"""

    valid: bool
    entries: int
    first: int
    last: int
    issues: list[dict[str, Any]]


class BenchmarkListResult(TypedDict):
    """BenchmarkListResult"""

    benchmarks: list[Benchmark]
    total: int


class BenchmarkRunResult(TypedDict):
    """BenchmarkRunResult"""

    benchmark: Benchmark


class BlobCreateResult(TypedDict):
    """BlobCreateResult"""

    blob: Blob


class BlobDeleteResult(TypedDict):
    """BlobDeleteResult"""

    freed_bytes: int


class BlobListResult(TypedDict):
    """BlobListResult"""

    blobs: list[Blob]
    total: int


class CatalogApplyRecipeResult(TypedDict):
    """CatalogApplyRecipeResult"""

    recipe_id: str
    run_id: str
    device_id: str | None
    engine: str
    engine_version: str | None
    model_id: str
    service_id: str
    made: list[str]
    notes: list[str]
    test: dict[str, Any]
    memory_bytes: int | None


class CatalogCheckStatusResult(TypedDict):
    """CatalogCheckStatusResult"""

    recipe_id: str
    status: Literal['applied', 'partial', 'absent']
    engine: dict[str, Any]
    model: dict[str, Any]
    service: dict[str, Any] | None
    differences: list[str]


class CatalogCreateRecipeResult(TypedDict):
    """CatalogCreateRecipeResult"""

    recipe: RecipeSummary
    notes: list[str]


class CatalogDeleteRecipeResult(TypedDict):
    """CatalogDeleteRecipeResult"""

    recipe_id: str


class CatalogGetResult(TypedDict):
    """CatalogGetResult"""

    recipe: RecipeSummary
    document: dict[str, Any]


class CatalogListResult(TypedDict):
    """CatalogListResult"""

    recipes: list[RecipeSummary]
    total: int


class CatalogMatchResult(TypedDict):
    """CatalogMatchResult"""

    recipes: list[dict[str, Any]]
    total: int
    refused: list[dict[str, Any]]
    refused_total: int


class CatalogValidateRecipeResult(TypedDict):
    """CatalogValidateRecipeResult"""

    valid: bool
    issues: list[PipelineIssue]
    notes: list[str]


class DeviceDetectResult(TypedDict):
    """DeviceDetectResult"""

    devices: list[Device]
    sources: list[dict[str, Any]]


class DeviceHealthResult(TypedDict):
    """DeviceHealthResult"""

    status: Literal['healthy', 'warning', 'critical', 'unknown']
    issues: list[DeviceIssue]
    devices: list[dict[str, Any]]


class DeviceInfoResult(TypedDict):
    """DeviceInfoResult"""

    devices: list[Device]


class DeviceMetricsResult(TypedDict):
    """DeviceMetricsResult"""

    device_id: str
    now: DeviceSample
    history: list[DeviceSample]
    devices: list[dict[str, Any]]


class EngineFeaturesResult(TypedDict):
    """EngineFeaturesResult"""

    features: EngineFeatures


class EngineGetResult(TypedDict):
    """EngineGetResult"""

    engine: Engine


class EngineInstallResult(TypedDict):
    """EngineInstallResult"""

    engine: str
    version: str | None
    path: str | None
    packages: list[str]
    model_id: str | None
    installed: bool


class EngineListResult(TypedDict):
    """EngineListResult"""

    engines: list[Engine]


class EngineLogsResult(TypedDict):
    """EngineLogsResult"""

    lines: list[str]


class EngineRestartResult(TypedDict):
    """EngineRestartResult"""

    instance: EngineInstance


class EngineStartResult(TypedDict):
    """EngineStartResult"""

    instance: EngineInstance


class EngineStopResult(TypedDict):
    """EngineStopResult"""

    stopped: list[str]
    freed_bytes: int


class EventExplainResult(TypedDict):
    """EventExplainResult"""

    explanation: str
    subject: dict[str, Any]
    cause: dict[str, Any]
    timeline: list[dict[str, Any]]
    left_out: list[dict[str, Any]]
    next: list[dict[str, Any]]


class EventListResult(TypedDict):
    """EventListResult"""

    events: list[Event]
    first: int
    last: int
    lagged: bool


class InferenceChatResult(TypedDict):
    """InferenceChatResult"""

    id: str
    model: str
    content: str
    reasoning_content: str | None
    tool_calls: list[ToolCall]
    finish_reason: str
    usage: dict[str, Any] | None
    timings: Timings
    placement: Placement


class InferenceCompleteResult(TypedDict):
    """InferenceCompleteResult"""

    id: str
    model: str
    text: str
    finish_reason: str
    usage: dict[str, Any] | None
    timings: Timings
    placement: Placement


class InferenceDetectResult(TypedDict):
    """InferenceDetectResult"""

    model: str
    detections: list[dict[str, Any]]
    width: int
    height: int
    placement: Placement


class InferenceEmbedResult(TypedDict):
    """InferenceEmbedResult"""

    model: str
    embeddings: list[list[float]]
    dimensions: int
    usage: Usage


class InferenceGenerateImageResult(TypedDict):
    """InferenceGenerateImageResult"""

    model: str
    images: list[dict[str, Any]]
    placement: Placement


class InferenceGenerateVideoResult(TypedDict):
    """InferenceGenerateVideoResult"""

    model: str
    video: str
    format: str
    media_type: str
    width: int | None
    height: int | None
    fps: int | None
    frames: int | None
    duration_seconds: float | None
    seed: int | None
    size_bytes: int
    placement: Placement


class InferenceModelsResult(TypedDict):
    """InferenceModelsResult"""

    models: list[AvailableModel]


class InferenceRerankResult(TypedDict):
    """InferenceRerankResult"""

    model: str
    results: list[dict[str, Any]]
    usage: Usage
    placement: Placement


class InferenceSynthesizeResult(TypedDict):
    """InferenceSynthesizeResult"""

    model: str
    audio: str
    format: str
    media_type: str
    sample_rate: int | None
    duration_seconds: float | None
    size_bytes: int
    voice: str | None
    placement: Placement


class InferenceTranscribeResult(TypedDict):
    """InferenceTranscribeResult"""

    model: str
    text: str
    segments: list[dict[str, Any]]
    language: str | None
    duration_seconds: float | None
    placement: Placement


class InferenceVoicesResult(TypedDict):
    """InferenceVoicesResult"""

    voices: list[dict[str, Any]]


class KeyCreateResult(TypedDict):
    """KeyCreateResult"""

    key: Key
    secret: str


class KeyListResult(TypedDict):
    """KeyListResult"""

    keys: list[Key]
    total: int


class KeyRevokeResult(TypedDict):
    """KeyRevokeResult"""

    key: Key


class ModelCreateResult(TypedDict):
    """ModelCreateResult"""

    model: Model


class ModelDeleteResult(TypedDict):
    """ModelDeleteResult"""

    freed_bytes: int


class ModelEstimateResourcesResult(TypedDict):
    """ModelEstimateResourcesResult"""

    memory: dict[str, Any]
    disk_bytes: int | None
    device_id: str
    engine: str
    context_length: int
    parallel: int
    cache_type: str
    fits: list[dict[str, Any]]
    split: list[dict[str, Any]]


class ModelGcResult(TypedDict):
    """ModelGcResult"""

    freed_bytes: int
    blobs: list[str]


class ModelGetResult(TypedDict):
    """ModelGetResult"""

    model: Model


class ModelImportResult(TypedDict):
    """ModelImportResult"""

    model: Model
    models: list[Model]
    skipped: list[dict[str, Any]]


class ModelListResult(TypedDict):
    """ModelListResult"""

    models: list[Model]
    total: int


class ModelPullResult(TypedDict):
    """ModelPullResult"""

    model: Model


class ModelSearchResult(TypedDict):
    """ModelSearchResult"""

    results: list[dict[str, Any]]
    unavailable: list[dict[str, Any]]


class ModelVerifyResult(TypedDict):
    """ModelVerifyResult"""

    valid: bool
    issues: list[dict[str, Any]]


class PipelineCancelResult(TypedDict):
    """PipelineCancelResult"""

    run: Run


class PipelineCreateResult(TypedDict):
    """PipelineCreateResult"""

    pipeline: Pipeline


class PipelineDeleteResult(TypedDict):
    """PipelineDeleteResult"""

    pipeline_id: str
    versions: int


class PipelineGetResult(TypedDict):
    """PipelineGetResult"""

    pipeline: Pipeline
    document: dict[str, Any]
    diagram: str


class PipelineListResult(TypedDict):
    """PipelineListResult"""

    pipelines: list[Pipeline]
    total: int


class PipelineRunResult(TypedDict):
    """PipelineRunResult"""

    run_id: str
    status: Literal['running', 'succeeded']
    output: Any


class PipelineStatusResult(TypedDict):
    """PipelineStatusResult"""

    run_id: str
    pipeline_id: str
    version: int | None
    status: Literal['running', 'succeeded', 'failed', 'cancelled', 'interrupted']
    undoing: bool
    steps: list[PipelineStep]
    error: dict[str, Any] | None


class PipelineValidateResult(TypedDict):
    """PipelineValidateResult"""

    valid: bool
    issues: list[PipelineIssue]


class ResourceAllocateResult(TypedDict):
    """ResourceAllocateResult"""

    slot: Slot


class ResourceAllocationsResult(TypedDict):
    """ResourceAllocationsResult"""

    allocations: list[Allocation]


class ResourceBudgetResult(TypedDict):
    """ResourceBudgetResult"""

    devices: list[dict[str, Any]]


class ResourceCanAllocateResult(TypedDict):
    """ResourceCanAllocateResult"""

    can_allocate: bool | None
    reason: str
    would_preempt: list[dict[str, Any]]
    fits_with_make_room: bool | None
    device_id: str
    needed_bytes: int
    usable_bytes: int | None


class ResourceReleaseResult(TypedDict):
    """ResourceReleaseResult"""

    slot: Slot


class ResourceStatusResult(TypedDict):
    """ResourceStatusResult"""

    memory: list[dict[str, Any]]
    storage: dict[str, Any]
    slots: list[Slot]
    pressure: Literal['none', 'warning', 'unknown']


class ResourceUpdateSlotResult(TypedDict):
    """ResourceUpdateSlotResult"""

    slot: Slot


class RunCancelResult(TypedDict):
    """RunCancelResult"""

    run: Run


class RunGetResult(TypedDict):
    """RunGetResult"""

    run: Run


class RunListResult(TypedDict):
    """RunListResult"""

    runs: list[Run]
    total: int


class RunWaitResult(TypedDict):
    """RunWaitResult"""

    run: Run


class SecretDeleteResult(TypedDict):
    """SecretDeleteResult"""

    deleted: str


class SecretListResult(TypedDict):
    """SecretListResult"""

    secrets: list[Secret]


class SecretPutResult(TypedDict):
    """SecretPutResult"""

    secret: Secret


class ServiceCreateResult(TypedDict):
    """ServiceCreateResult"""

    service: Service


class ServiceDeleteResult(TypedDict):
    """ServiceDeleteResult"""

    freed_bytes: int


class ServiceGetResult(TypedDict):
    """ServiceGetResult"""

    service: Service


class ServiceListResult(TypedDict):
    """ServiceListResult"""

    services: list[Service]
    total: int


class ServiceLogsResult(TypedDict):
    """ServiceLogsResult"""

    lines: list[str]


class ServiceScaleResult(TypedDict):
    """ServiceScaleResult"""

    service: Service


class ServiceStartResult(TypedDict):
    """ServiceStartResult"""

    service: Service


class ServiceStatusResult(TypedDict):
    """ServiceStatusResult"""

    service: Service
    instance: dict[str, Any] | None
    instances: list[dict[str, Any]]
    queue: dict[str, Any]
    metrics: ServiceMetrics
    restarts: int


class ServiceStopResult(TypedDict):
    """ServiceStopResult"""

    service: Service


class ServiceUpdateResult(TypedDict):
    """ServiceUpdateResult"""

    service: Service


class SystemDoctorResult(TypedDict):
    """SystemDoctorResult"""

    healthy: bool
    checks: list[dict[str, Any]]
    units: list[dict[str, Any]]


class SystemFreezeResult(TypedDict):
    """SystemFreezeResult"""

    frozen: dict[str, Any] | None


class SystemInfoResult(TypedDict):
    """SystemInfoResult"""

    version: str
    home: str
    pid: int
    url: str | None
    started_at: str
    uptime_seconds: float
    platform: str
    python: str
    frozen: dict[str, Any] | None
    counts: dict[str, Any]


class SystemThawResult(TypedDict):
    """SystemThawResult"""

    frozen: dict[str, Any] | None


class UnitCallResult(TypedDict):
    """UnitCallResult"""

    name: str
    result: dict[str, Any] | None
    plan: NotRequired[Plan]
    run: NotRequired[dict[str, Any]]


class UnitDescribeResult(TypedDict):
    """UnitDescribeResult"""

    unit: dict[str, Any]


class UnitSearchResult(TypedDict):
    """UnitSearchResult"""

    units: list[dict[str, Any]]


class VectorDeleteResult(TypedDict):
    """VectorDeleteResult"""

    deleted: int


class VectorListResult(TypedDict):
    """VectorListResult"""

    collections: list[VectorCollection]
    total: int


class VectorPutResult(TypedDict):
    """VectorPutResult"""

    collection: VectorCollection
    ids: list[str]


class VectorSearchResult(TypedDict):
    """VectorSearchResult"""

    matches: list[dict[str, Any]]
