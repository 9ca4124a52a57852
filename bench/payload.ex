defmodule Bench.Payload do
  @moduledoc "What the peer sends: MESSAGEs with header sets as brokers write them."

  alias Barytherium.Frame

  # Large enough that it is not all in a cache, and that ids seldom repeat.
  @bytes 8 * 1024 * 1024

  @doc "Frames with bodies of `body` bytes: `{bytes, frames}`."
  def new(body, headers \\ :plain, content_length? \\ true) do
    one = byte_size(frame(1, body, headers, content_length?))
    count = max(div(@bytes, one), 8)
    bytes = for n <- 1..count, into: "", do: frame(n, body, headers, content_length?)
    {bytes, count}
  end

  def frame(n, body, headers, content_length?) do
    # No NUL in it, so that it may go without its length.
    body = :binary.copy("x", body)
    length = if content_length?, do: [{"content-length", to_string(byte_size(body))}], else: []
    headers = headers(headers, n) ++ length
    frame = %Frame{command: :message, headers: headers, body: body}
    bytes = IO.iodata_to_binary(Frame.format(frame))
    bytes = if content_length?, do: bytes, else: without_length(bytes)
    bytes <> "\n"
  end

  defp without_length(bytes),
    do: String.replace(bytes, ~r/content-length:\d+\n/, "", global: false)

  # Nine in all, of which two differ from frame to frame; no two frames of a feed differ in more.
  defp headers(:plain, n) do
    [
      {"subscription", "0"},
      {"destination", "/topic/darwin.pushport-v16"},
      {"message-id", "T_0@@session-7FofS6Wt4dJCN_a6hi5vqQ@@#{n}"},
      {"ack", "T_0@@session-7FofS6Wt4dJCN_a6hi5vqQ@@#{n}"},
      {"redelivered", "false"},
      {"content-type", "application/octet-stream"},
      {"FilterHeaderLevel", "TS"},
      {"MessageType", "TS"}
    ]
  end

  # As RabbitMQ 3.10 was recorded to write them.
  defp headers(:rabbitmq, n) do
    [
      {"subscription", "0"},
      {"destination", "/queue/rec"},
      {"message-id", "T_0@@session-7FofS6Wt4dJCN_a6hi5vqQ@@#{n}"},
      {"redelivered", "false"},
      {"ack", "T_0@@session-7FofS6Wt4dJCN_a6hi5vqQ@@#{n}"},
      {"content-type", "text/plain"}
    ]
  end

  # As ActiveMQ 5.17 was: ids have escapes in them, and three headers differ.
  defp headers(:activemq, n) do
    [
      {"expires", "0"},
      {"destination", "/queue/rec"},
      {"ack", "ID:amq-39037-1795534189608-4:#{n}"},
      {"subscription", "0"},
      {"priority", "4"},
      {"FilterHeaderLevel", "TS,1"},
      {"message-id", "ID:amq-39037-1795534189608-3:2:-1:1:#{n}"},
      {"MessageType", "TS"},
      {"timestamp", to_string(1_795_534_190_988 + n)},
      {"PushPortSequence", to_string(1_000_000 + n)}
    ]
  end
end
