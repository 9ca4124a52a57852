ExUnit.start(exclude: [:broker], capture_log: true, assert_receive_timeout: 2_000)
