# mypy: disable-error-code="type-arg"
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[DType]
    DTYPE_FLOAT64: _ClassVar[DType]
    DTYPE_FLOAT32: _ClassVar[DType]
    DTYPE_FLOAT16: _ClassVar[DType]
    DTYPE_BFLOAT16: _ClassVar[DType]
    DTYPE_FLOAT8_E4M3FN: _ClassVar[DType]
    DTYPE_FLOAT8_E5M2: _ClassVar[DType]
    DTYPE_INT64: _ClassVar[DType]
    DTYPE_INT32: _ClassVar[DType]
    DTYPE_INT16: _ClassVar[DType]
    DTYPE_INT8: _ClassVar[DType]
    DTYPE_UINT64: _ClassVar[DType]
    DTYPE_UINT32: _ClassVar[DType]
    DTYPE_UINT16: _ClassVar[DType]
    DTYPE_UINT8: _ClassVar[DType]
    DTYPE_BOOL: _ClassVar[DType]
DTYPE_UNSPECIFIED: DType
DTYPE_FLOAT64: DType
DTYPE_FLOAT32: DType
DTYPE_FLOAT16: DType
DTYPE_BFLOAT16: DType
DTYPE_FLOAT8_E4M3FN: DType
DTYPE_FLOAT8_E5M2: DType
DTYPE_INT64: DType
DTYPE_INT32: DType
DTYPE_INT16: DType
DTYPE_INT8: DType
DTYPE_UINT64: DType
DTYPE_UINT32: DType
DTYPE_UINT16: DType
DTYPE_UINT8: DType
DTYPE_BOOL: DType

class TensorData(_message.Message):
    __slots__ = ("data", "shape", "dtype", "codec", "side", "chunked_bytes", "padding")
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    CHUNKED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: DType
    codec: str
    side: bytes
    chunked_bytes: int
    padding: bytes
    def __init__(self, data: _Optional[bytes] = ..., shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[_Union[DType, str]] = ..., codec: _Optional[str] = ..., side: _Optional[bytes] = ..., chunked_bytes: _Optional[int] = ..., padding: _Optional[bytes] = ...) -> None: ...

class TensorChunk(_message.Message):
    __slots__ = ("data", "offset", "total_bytes")
    DATA_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    offset: int
    total_bytes: int
    def __init__(self, data: _Optional[bytes] = ..., offset: _Optional[int] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class NamedTensor(_message.Message):
    __slots__ = ("name", "tensor")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    name: str
    tensor: TensorData
    def __init__(self, name: _Optional[str] = ..., tensor: _Optional[_Union[TensorData, _Mapping]] = ...) -> None: ...

class KVCacheEntry(_message.Message):
    __slots__ = ("layer", "kind", "tensors")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    layer: int
    kind: str
    tensors: _containers.RepeatedCompositeFieldContainer[NamedTensor]
    def __init__(self, layer: _Optional[int] = ..., kind: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[NamedTensor, _Mapping]]] = ...) -> None: ...

class KVCache(_message.Message):
    __slots__ = ("entries", "position")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[KVCacheEntry]
    position: int
    def __init__(self, entries: _Optional[_Iterable[_Union[KVCacheEntry, _Mapping]]] = ..., position: _Optional[int] = ...) -> None: ...

class ComputeRequest(_message.Message):
    __slots__ = ("tensor", "attention_mask", "position_ids", "past_key_values", "use_cache", "expected_fingerprint", "kv", "adapter")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_MASK_FIELD_NUMBER: _ClassVar[int]
    POSITION_IDS_FIELD_NUMBER: _ClassVar[int]
    PAST_KEY_VALUES_FIELD_NUMBER: _ClassVar[int]
    USE_CACHE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    tensor: TensorData
    attention_mask: TensorData
    position_ids: TensorData
    past_key_values: KVCache
    use_cache: bool
    expected_fingerprint: str
    kv: Codecs
    adapter: str
    def __init__(self, tensor: _Optional[_Union[TensorData, _Mapping]] = ..., attention_mask: _Optional[_Union[TensorData, _Mapping]] = ..., position_ids: _Optional[_Union[TensorData, _Mapping]] = ..., past_key_values: _Optional[_Union[KVCache, _Mapping]] = ..., use_cache: bool = ..., expected_fingerprint: _Optional[str] = ..., kv: _Optional[_Union[Codecs, _Mapping]] = ..., adapter: _Optional[str] = ...) -> None: ...

class ComputeResponse(_message.Message):
    __slots__ = ("tensor", "past_key_values")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    PAST_KEY_VALUES_FIELD_NUMBER: _ClassVar[int]
    tensor: TensorData
    past_key_values: KVCache
    def __init__(self, tensor: _Optional[_Union[TensorData, _Mapping]] = ..., past_key_values: _Optional[_Union[KVCache, _Mapping]] = ...) -> None: ...

class SessionRequest(_message.Message):
    __slots__ = ("session_id", "step_id", "position", "open", "forward", "reorder", "crop", "start_recording", "close", "chunk", "export", "import_state", "start_training", "forward_pass", "backward_pass", "update", "read_training", "write_training", "publish_adapter", "free_adapter", "timeout_ms")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    REORDER_FIELD_NUMBER: _ClassVar[int]
    CROP_FIELD_NUMBER: _ClassVar[int]
    START_RECORDING_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    EXPORT_FIELD_NUMBER: _ClassVar[int]
    IMPORT_STATE_FIELD_NUMBER: _ClassVar[int]
    START_TRAINING_FIELD_NUMBER: _ClassVar[int]
    FORWARD_PASS_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_PASS_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    READ_TRAINING_FIELD_NUMBER: _ClassVar[int]
    WRITE_TRAINING_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_ADAPTER_FIELD_NUMBER: _ClassVar[int]
    FREE_ADAPTER_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    step_id: int
    position: int
    open: Open
    forward: Forward
    reorder: Reorder
    crop: Crop
    start_recording: StartRecording
    close: Close
    chunk: TensorChunk
    export: Export
    import_state: Import
    start_training: StartTraining
    forward_pass: ForwardPass
    backward_pass: BackwardPass
    update: Update
    read_training: ReadTraining
    write_training: WriteTraining
    publish_adapter: PublishAdapter
    free_adapter: FreeAdapter
    timeout_ms: int
    def __init__(self, session_id: _Optional[str] = ..., step_id: _Optional[int] = ..., position: _Optional[int] = ..., open: _Optional[_Union[Open, _Mapping]] = ..., forward: _Optional[_Union[Forward, _Mapping]] = ..., reorder: _Optional[_Union[Reorder, _Mapping]] = ..., crop: _Optional[_Union[Crop, _Mapping]] = ..., start_recording: _Optional[_Union[StartRecording, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ..., chunk: _Optional[_Union[TensorChunk, _Mapping]] = ..., export: _Optional[_Union[Export, _Mapping]] = ..., import_state: _Optional[_Union[Import, _Mapping]] = ..., start_training: _Optional[_Union[StartTraining, _Mapping]] = ..., forward_pass: _Optional[_Union[ForwardPass, _Mapping]] = ..., backward_pass: _Optional[_Union[BackwardPass, _Mapping]] = ..., update: _Optional[_Union[Update, _Mapping]] = ..., read_training: _Optional[_Union[ReadTraining, _Mapping]] = ..., write_training: _Optional[_Union[WriteTraining, _Mapping]] = ..., publish_adapter: _Optional[_Union[PublishAdapter, _Mapping]] = ..., free_adapter: _Optional[_Union[FreeAdapter, _Mapping]] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("expected_fingerprint", "resume", "chunk_bytes", "hidden", "timings", "can_move", "gradient", "kv", "adapter")
    EXPECTED_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    CAN_MOVE_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    expected_fingerprint: str
    resume: bool
    chunk_bytes: int
    hidden: Codecs
    timings: bool
    can_move: bool
    gradient: Codecs
    kv: Codecs
    adapter: str
    def __init__(self, expected_fingerprint: _Optional[str] = ..., resume: bool = ..., chunk_bytes: _Optional[int] = ..., hidden: _Optional[_Union[Codecs, _Mapping]] = ..., timings: bool = ..., can_move: bool = ..., gradient: _Optional[_Union[Codecs, _Mapping]] = ..., kv: _Optional[_Union[Codecs, _Mapping]] = ..., adapter: _Optional[str] = ...) -> None: ...

class Export(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Import(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: SessionState
    def __init__(self, state: _Optional[_Union[SessionState, _Mapping]] = ...) -> None: ...

class SessionState(_message.Message):
    __slots__ = ("cache", "batch")
    CACHE_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    cache: KVCache
    batch: int
    def __init__(self, cache: _Optional[_Union[KVCache, _Mapping]] = ..., batch: _Optional[int] = ...) -> None: ...

class Codecs(_message.Message):
    __slots__ = ("to_server", "to_client")
    TO_SERVER_FIELD_NUMBER: _ClassVar[int]
    TO_CLIENT_FIELD_NUMBER: _ClassVar[int]
    to_server: str
    to_client: str
    def __init__(self, to_server: _Optional[str] = ..., to_client: _Optional[str] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue_s", "compute_s", "serialise_s")
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    SERIALISE_S_FIELD_NUMBER: _ClassVar[int]
    queue_s: float
    compute_s: float
    serialise_s: float
    def __init__(self, queue_s: _Optional[float] = ..., compute_s: _Optional[float] = ..., serialise_s: _Optional[float] = ...) -> None: ...

class Forward(_message.Message):
    __slots__ = ("tensor", "attention_mask", "position_ids")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_MASK_FIELD_NUMBER: _ClassVar[int]
    POSITION_IDS_FIELD_NUMBER: _ClassVar[int]
    tensor: TensorData
    attention_mask: TensorData
    position_ids: TensorData
    def __init__(self, tensor: _Optional[_Union[TensorData, _Mapping]] = ..., attention_mask: _Optional[_Union[TensorData, _Mapping]] = ..., position_ids: _Optional[_Union[TensorData, _Mapping]] = ...) -> None: ...

class Reorder(_message.Message):
    __slots__ = ("indices",)
    INDICES_FIELD_NUMBER: _ClassVar[int]
    indices: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, indices: _Optional[_Iterable[int]] = ...) -> None: ...

class Crop(_message.Message):
    __slots__ = ("num_tokens",)
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    num_tokens: int
    def __init__(self, num_tokens: _Optional[int] = ...) -> None: ...

class StartRecording(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Close(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StartTraining(_message.Message):
    __slots__ = ("adapter", "full", "optimizer", "groups", "recompute", "name")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    adapter: LowRankAdapter
    full: bool
    optimizer: str
    groups: _containers.RepeatedCompositeFieldContainer[ParameterGroup]
    recompute: float
    name: str
    def __init__(self, adapter: _Optional[_Union[LowRankAdapter, _Mapping]] = ..., full: bool = ..., optimizer: _Optional[str] = ..., groups: _Optional[_Iterable[_Union[ParameterGroup, _Mapping]]] = ..., recompute: _Optional[float] = ..., name: _Optional[str] = ...) -> None: ...

class LowRankAdapter(_message.Message):
    __slots__ = ("config", "tensors")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    config: str
    tensors: _containers.RepeatedCompositeFieldContainer[NamedTensor]
    def __init__(self, config: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[NamedTensor, _Mapping]]] = ...) -> None: ...

class ParameterGroup(_message.Message):
    __slots__ = ("names", "options")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    options: str
    def __init__(self, names: _Optional[_Iterable[str]] = ..., options: _Optional[str] = ...) -> None: ...

class ForwardPass(_message.Message):
    __slots__ = ("tensor", "attention_mask", "position_ids", "pass_id", "seed", "seed_step", "no_backward", "autocast")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_MASK_FIELD_NUMBER: _ClassVar[int]
    POSITION_IDS_FIELD_NUMBER: _ClassVar[int]
    PASS_ID_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SEED_STEP_FIELD_NUMBER: _ClassVar[int]
    NO_BACKWARD_FIELD_NUMBER: _ClassVar[int]
    AUTOCAST_FIELD_NUMBER: _ClassVar[int]
    tensor: TensorData
    attention_mask: TensorData
    position_ids: TensorData
    pass_id: int
    seed: int
    seed_step: int
    no_backward: bool
    autocast: DType
    def __init__(self, tensor: _Optional[_Union[TensorData, _Mapping]] = ..., attention_mask: _Optional[_Union[TensorData, _Mapping]] = ..., position_ids: _Optional[_Union[TensorData, _Mapping]] = ..., pass_id: _Optional[int] = ..., seed: _Optional[int] = ..., seed_step: _Optional[int] = ..., no_backward: bool = ..., autocast: _Optional[_Union[DType, str]] = ...) -> None: ...

class BackwardPass(_message.Message):
    __slots__ = ("tensor", "pass_id", "wants_gradient", "accumulate", "scale")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    PASS_ID_FIELD_NUMBER: _ClassVar[int]
    WANTS_GRADIENT_FIELD_NUMBER: _ClassVar[int]
    ACCUMULATE_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    tensor: TensorData
    pass_id: int
    wants_gradient: bool
    accumulate: bool
    scale: float
    def __init__(self, tensor: _Optional[_Union[TensorData, _Mapping]] = ..., pass_id: _Optional[int] = ..., wants_gradient: bool = ..., accumulate: bool = ..., scale: _Optional[float] = ...) -> None: ...

class Update(_message.Message):
    __slots__ = ("update_id", "options", "scale")
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    update_id: int
    options: _containers.RepeatedScalarFieldContainer[str]
    scale: float
    def __init__(self, update_id: _Optional[int] = ..., options: _Optional[_Iterable[str]] = ..., scale: _Optional[float] = ...) -> None: ...

class ReadTraining(_message.Message):
    __slots__ = ("first",)
    FIRST_FIELD_NUMBER: _ClassVar[int]
    first: int
    def __init__(self, first: _Optional[int] = ...) -> None: ...

class WriteTraining(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: TrainingState
    def __init__(self, state: _Optional[_Union[TrainingState, _Mapping]] = ...) -> None: ...

class PublishAdapter(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class FreeAdapter(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class TrainingState(_message.Message):
    __slots__ = ("update_id", "tensors", "num_tensors")
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    NUM_TENSORS_FIELD_NUMBER: _ClassVar[int]
    update_id: int
    tensors: _containers.RepeatedCompositeFieldContainer[NamedTensor]
    num_tensors: int
    def __init__(self, update_id: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[NamedTensor, _Mapping]]] = ..., num_tensors: _Optional[int] = ...) -> None: ...

class SessionResponse(_message.Message):
    __slots__ = ("step_id", "position", "opened", "tensor", "done", "error", "chunk", "state", "training_state", "timings", "draining", "gradient_norms")
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TRAINING_STATE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_NORMS_FIELD_NUMBER: _ClassVar[int]
    step_id: int
    position: int
    opened: Opened
    tensor: TensorData
    done: Done
    error: Error
    chunk: TensorChunk
    state: SessionState
    training_state: TrainingState
    timings: Timings
    draining: bool
    gradient_norms: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, step_id: _Optional[int] = ..., position: _Optional[int] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., tensor: _Optional[_Union[TensorData, _Mapping]] = ..., done: _Optional[_Union[Done, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., chunk: _Optional[_Union[TensorChunk, _Mapping]] = ..., state: _Optional[_Union[SessionState, _Mapping]] = ..., training_state: _Optional[_Union[TrainingState, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., draining: bool = ..., gradient_norms: _Optional[_Iterable[float]] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("max_message_bytes", "chunk_bytes", "stateful", "fingerprint", "load")
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATEFUL_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    max_message_bytes: int
    chunk_bytes: int
    stateful: bool
    fingerprint: str
    load: Load
    def __init__(self, max_message_bytes: _Optional[int] = ..., chunk_bytes: _Optional[int] = ..., stateful: bool = ..., fingerprint: _Optional[str] = ..., load: _Optional[_Union[Load, _Mapping]] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "kind", "message", "request_id", "retry_after_s")
    CODE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    code: int
    kind: str
    message: str
    request_id: str
    retry_after_s: float
    def __init__(self, code: _Optional[int] = ..., kind: _Optional[str] = ..., message: _Optional[str] = ..., request_id: _Optional[str] = ..., retry_after_s: _Optional[float] = ...) -> None: ...

class HealthCheckRequest(_message.Message):
    __slots__ = ("padding", "with_load")
    PADDING_FIELD_NUMBER: _ClassVar[int]
    WITH_LOAD_FIELD_NUMBER: _ClassVar[int]
    padding: bytes
    with_load: bool
    def __init__(self, padding: _Optional[bytes] = ..., with_load: bool = ...) -> None: ...

class HealthCheckResponse(_message.Message):
    __slots__ = ("serving", "padding", "load", "models")
    SERVING_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    serving: bool
    padding: bytes
    load: Load
    models: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, serving: bool = ..., padding: _Optional[bytes] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., models: _Optional[_Iterable[str]] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("steps", "sessions", "kv_bytes", "kv_limit_bytes")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    steps: int
    sessions: int
    kv_bytes: int
    kv_limit_bytes: int
    def __init__(self, steps: _Optional[int] = ..., sessions: _Optional[int] = ..., kv_bytes: _Optional[int] = ..., kv_limit_bytes: _Optional[int] = ...) -> None: ...

class ServiceInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServiceInfo(_message.Message):
    __slots__ = ("name", "fingerprint", "split_start", "split_end", "num_layers", "hidden_size", "dtype", "max_positions", "model_type", "cache_kinds", "stateful", "version", "max_message_bytes", "extra", "codecs")
    class ExtraEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SPLIT_START_FIELD_NUMBER: _ClassVar[int]
    SPLIT_END_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    MAX_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    MODEL_TYPE_FIELD_NUMBER: _ClassVar[int]
    CACHE_KINDS_FIELD_NUMBER: _ClassVar[int]
    STATEFUL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXTRA_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    name: str
    fingerprint: str
    split_start: int
    split_end: int
    num_layers: int
    hidden_size: int
    dtype: DType
    max_positions: int
    model_type: str
    cache_kinds: _containers.RepeatedScalarFieldContainer[str]
    stateful: bool
    version: str
    max_message_bytes: int
    extra: _containers.ScalarMap[str, str]
    codecs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., fingerprint: _Optional[str] = ..., split_start: _Optional[int] = ..., split_end: _Optional[int] = ..., num_layers: _Optional[int] = ..., hidden_size: _Optional[int] = ..., dtype: _Optional[_Union[DType, str]] = ..., max_positions: _Optional[int] = ..., model_type: _Optional[str] = ..., cache_kinds: _Optional[_Iterable[str]] = ..., stateful: bool = ..., version: _Optional[str] = ..., max_message_bytes: _Optional[int] = ..., extra: _Optional[_Mapping[str, str]] = ..., codecs: _Optional[_Iterable[str]] = ...) -> None: ...

class WatchStatisticsRequest(_message.Message):
    __slots__ = ("interval_s",)
    INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    interval_s: float
    def __init__(self, interval_s: _Optional[float] = ...) -> None: ...

class Statistics(_message.Message):
    __slots__ = ("time_s", "samples")
    TIME_S_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    time_s: float
    samples: _containers.RepeatedCompositeFieldContainer[StatisticsSample]
    def __init__(self, time_s: _Optional[float] = ..., samples: _Optional[_Iterable[_Union[StatisticsSample, _Mapping]]] = ...) -> None: ...

class StatisticsSample(_message.Message):
    __slots__ = ("name", "labels", "value")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    labels: _containers.ScalarMap[str, str]
    value: float
    def __init__(self, name: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., value: _Optional[float] = ...) -> None: ...
