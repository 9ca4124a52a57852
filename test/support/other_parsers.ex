defmodule Barytherium.OtherParsers do
  @moduledoc """
  Independent implementations to compare with: RabbitMQ's frame parser, and stomp.py.

  Each decodes bytes to `{frames, refused?}`. A frame is `{command, headers, body}`, and its headers
  are a map.
  """

  # `start!/0` loads it from the installed RabbitMQ.
  @compile {:no_warn_undefined, :rabbit_stomp_frame}

  @rabbitmq "/usr/lib/rabbitmq/lib/rabbitmq_server-*/plugins/rabbitmq_stomp-*/ebin"
  @script Path.join(__DIR__, "stomp_py.py")

  # In bytes, for a line of stomp.py's answers.
  @longest_line 1_000_000

  @doc "Loads RabbitMQ's parser, and starts stomp.py as a port of the calling process."
  def start! do
    case Path.wildcard(@rabbitmq) do
      [path | _] -> :code.add_pathz(to_charlist(path))
      [] -> raise "RabbitMQ is not installed: run script/bootstrap brokers"
    end

    options = [:binary, {:line, @longest_line}, args: [@script]]
    Port.open({:spawn_executable, ~c"/usr/bin/python3"}, options)
  end

  @doc "Decodes as RabbitMQ does, which is a server and expects a client's frames."
  def rabbitmq(bytes), do: rabbitmq(bytes, [])

  defp rabbitmq(bytes, frames) do
    case rabbitmq_parse(bytes) do
      {:ok, {:stomp_frame, command, headers, body}, rest} ->
        # The first of repeated headers counts.
        headers = for {name, value} <- headers, do: {binary(name), binary(value)}
        frame = {to_string(command), headers |> Enum.reverse() |> Map.new(), binary(body)}
        rabbitmq(rest, [frame | frames])

      {:more, _state} ->
        {Enum.reverse(frames), false}

      {:error, _reason} ->
        {Enum.reverse(frames), true}
    end
  end

  # A content-length that is wrong, or not a number, raises in RabbitMQ and ends the connection.
  defp rabbitmq_parse(bytes) do
    :rabbit_stomp_frame.parse(bytes, :rabbit_stomp_frame.initial_state())
  rescue
    error in [ArgumentError, MatchError] -> {:error, error}
  end

  @doc "The frame as RabbitMQ encodes it."
  def rabbitmq_format({command, headers, body}) do
    headers = for {name, value} <- headers, do: {byte_list(name), byte_list(value)}
    frame = {:stomp_frame, to_charlist(command), headers, [body]}
    frame |> :rabbit_stomp_frame.serialize() |> IO.iodata_to_binary()
  end

  @doc "Decodes as stomp.py does."
  def stomp_py(port, bytes) do
    case ask(port, ["read ", hex(bytes)]) do
      "!" <> frames -> {frames(frames), true}
      frames -> {frames(frames), false}
    end
  end

  @doc "The frame as stomp.py encodes it."
  def stomp_py_format(port, {command, headers, body}) do
    headers = for {name, value} <- headers, do: [",", hex(name), "=", hex(value)]
    port |> ask(["write ", hex(command), ",", hex(body) | headers]) |> unhex()
  end

  defp ask(port, request) do
    Port.command(port, [request, "\n"])

    receive do
      {^port, {:data, {:eol, line}}} -> line
    end
  end

  defp frames(text), do: for(frame <- String.split(text, ";", trim: true), do: frame(frame))

  defp frame(text) do
    [command, body | headers] = String.split(text, ",")
    pairs = for header <- headers, do: header |> String.split("=") |> Enum.map(&unhex/1)
    {unhex(command), Map.new(pairs, &List.to_tuple/1), unhex(body)}
  end

  defp byte_list(text), do: :binary.bin_to_list(text)
  defp binary(text), do: IO.iodata_to_binary(text)
  defp hex(bytes), do: Base.encode16(bytes)
  defp unhex(text), do: Base.decode16!(text, case: :mixed)
end
