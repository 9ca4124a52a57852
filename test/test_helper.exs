# The time-outs are for a machine that is busy with other things.
ExUnit.start(
  exclude: [:real_broker, :cluster, :websocket],
  capture_log: true,
  assert_receive_timeout: 10_000,
  timeout: 180_000
)
