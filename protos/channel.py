"""Options and bounds that both ends of every Shoal gRPC channel agree on.

A stream that is silent for a while (a long prefill) must not be cut for "too many pings", and one
bad ping policy would take every stream on the channel with it; hence the permissive keepalive on
both ends.
"""

ChannelOptions = list[tuple[str, int]]

# Messages of one stream are so far apart, or leave together: each costs both ends some 0.2 ms of
# CPU, whatever it carries.
SEND_INTERVAL_S = 0.002

KEEPALIVE: ChannelOptions = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]

CLIENT_OPTIONS: ChannelOptions = [
    *KEEPALIVE,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]

SERVER_OPTIONS: ChannelOptions = [
    *KEEPALIVE,
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
]
