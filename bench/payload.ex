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

  @doc "The same for bodies of 126 bytes to 60 KB, each in a message of a WebSocket (RFC 6455, 5.2)."
  def messages(body) do
    count = max(div(@bytes, body), 8)

    for n <- 1..count, into: "" do
      frame = frame(n, body, :plain, true)
      <<0x82, 126, byte_size(frame)::16, frame::binary>>
    end
  end

  # Kilobytes of XML of Darwin's messages, which are varied.
  @darwin [1, 1.5, 2, 3, 3, 4, 6, 10, 20]

  @doc "Frames like Darwin's, whose bodies are gzip: 1 to 20 KB of XML, of which each is another."
  def darwin do
    :rand.seed(:exsss, {1, 2, 3})
    count = 2_000

    frames =
      for n <- 1..count do
        body = n |> xml(round(1024 * Enum.random(@darwin))) |> :zlib.gzip()
        length = {"content-length", to_string(byte_size(body))}
        frame = %Frame{command: :message, headers: headers(:plain, n) ++ [length], body: body}
        [Frame.format(frame), "\n"]
      end

    {IO.iodata_to_binary(frames), count}
  end

  defp xml(n, size) do
    locations =
      Stream.repeatedly(&location/0)
      |> Enum.reduce_while({0, []}, fn one, {bytes, all} ->
        if bytes < size, do: {:cont, {bytes + byte_size(one), [one | all]}}, else: {:halt, all}
      end)

    IO.iodata_to_binary([
      ~s(<?xml version="1.0" encoding="UTF-8"?><Pport xmlns="http://www.thalesgroup.com/rtti/PushPort/v16" ),
      ~s(ts="2026-11-29T#{time()}:01.1234567Z" version="16.0"><uR updateOrigin="TD"><TS rid="20261129#{n}" ),
      ~s(ssd="2026-11-29" uid="C#{10_000 + n}">),
      locations,
      "</TS></uR></Pport>"
    ])
  end

  defp location do
    {due, platform} = {time(), Enum.random(1..20)}
    name = for _letter <- 1..Enum.random(4..7), into: "", do: <<Enum.random(?A..?Z)>>

    ~s(<ns5:Location pta="#{due}" ptd="#{due}" tpl="#{name}" wta="#{due}:30" wtd="#{due}">) <>
      ~s(<ns5:dep et="#{time()}" src="Darwin"/><ns5:plat platsup="true">#{platform}</ns5:plat></ns5:Location>)
  end

  defp time do
    [hour, minute] = for most <- [23, 59], do: 0..most |> Enum.random() |> to_string()
    String.pad_leading(hour, 2, "0") <> ":" <> String.pad_leading(minute, 2, "0")
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
