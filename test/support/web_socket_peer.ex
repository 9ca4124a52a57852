defmodule Barytherium.WebSocketPeer do
  @moduledoc """
  The server's end of a WebSocket, for `Barytherium.Peer`. `frame/3` writes whatever a test wants, also what no server
  may send.
  """

  import Kernel, except: [send: 2]

  alias Barytherium.Connection

  # `rest` are bytes that came behind the request. What was received since is in the dictionary of the process.
  @enforce_keys [:socket, :request, :rest]
  defstruct [:socket, :request, :rest]

  @guid "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

  @doc """
  Answers the opening handshake on a socket. `change` gets the answer's lines: the status line, then `{name, value}`.
  """
  def accept(socket, change \\ & &1) do
    {lines, rest} = read_request(socket, "")
    headers = headers(tl(lines))
    key = headers["sec-websocket-key"]

    answer = [
      "HTTP/1.1 101 Switching Protocols",
      {"Upgrade", "websocket"},
      {"Connection", "Upgrade"},
      {"Sec-WebSocket-Accept", Base.encode64(:crypto.hash(:sha, "#{key}#{@guid}"))},
      {"Sec-WebSocket-Protocol", "v12.stomp"}
    ]

    Connection.send(socket, [Enum.map(change.(answer), &line/1), "\r\n"])
    %__MODULE__{socket: socket, request: {hd(lines), headers}, rest: rest}
  end

  @doc "The lines of an HTTP request, and what has come behind it."
  def read_request(socket, read) do
    case String.split(read, "\r\n\r\n", parts: 2) do
      [head, rest] ->
        {String.split(head, "\r\n"), rest}

      [read] ->
        {:ok, more} = Connection.recv(socket, 0, 5_000)
        read_request(socket, read <> more)
    end
  end

  def headers(lines) do
    Map.new(lines, fn line ->
      [name, value] = String.split(line, ": ", parts: 2)
      {String.downcase(name), value}
    end)
  end

  defp line({:raw, bytes}), do: bytes
  defp line({name, value}), do: "#{name}: #{value}\r\n"
  defp line(line), do: line <> "\r\n"

  @doc "Sends `data` in a binary message."
  def send(peer, data), do: send_raw(peer, frame(2, IO.iodata_to_binary(data)))

  def send_raw(%{socket: socket}, bytes), do: Connection.send(socket, bytes)

  @doc "A frame of a server. `first` are the bits in front of the opcode: FIN, and three reserved ones."
  def frame(opcode, payload, first \\ 0b1000) do
    length = byte_size(payload)

    cond do
      length < 126 -> <<first::4, opcode::4, length, payload::binary>>
      length < 65_536 -> <<first::4, opcode::4, 126, length::16, payload::binary>>
      true -> <<first::4, opcode::4, 127, length::64, payload::binary>>
    end
  end

  @doc "Receives payload of messages. Answers the client's close frame, and takes it as the end."
  def recv(peer, length, timeout) do
    state = state(peer)

    if state.payload != "" and byte_size(state.payload) >= length do
      length = if length == 0, do: byte_size(state.payload), else: length
      {taken, payload} = :erlang.split_binary(state.payload, length)
      put(peer, %{state | payload: payload})
      {:ok, taken}
    else
      case recv_frame(peer, timeout) do
        {:ok, {8, payload}} ->
          send_raw(peer, frame(8, payload))
          {:error, :closed}

        {:ok, {opcode, payload}} when opcode < 8 ->
          state = state(peer)
          put(peer, %{state | payload: state.payload <> payload})
          recv(peer, length, timeout)

        {:ok, _control} ->
          recv(peer, length, timeout)

        {:error, reason} ->
          {:error, reason}
      end
    end
  end

  @doc "Receives a frame of the client: `{:ok, {opcode, payload}}`."
  def recv_frame(peer, timeout \\ 2_000) do
    state = state(peer)

    case parse(state.bytes) do
      {frame, rest} ->
        put(peer, %{state | bytes: rest})
        {:ok, frame}

      :more ->
        with {:ok, bytes} <- Connection.recv(peer.socket, 0, timeout) do
          put(peer, %{state | bytes: state.bytes <> bytes})
          recv_frame(peer, timeout)
        end
    end
  end

  defp state(peer), do: Process.get({__MODULE__, peer}, %{bytes: peer.rest, payload: ""})
  defp put(peer, state), do: Process.put({__MODULE__, peer}, state)

  # A client's frames are complete messages, and masked.
  defp parse(<<0b1000::4, opcode::4, 1::1, 127::7, length::64, rest::binary>>),
    do: parse(opcode, length, rest)

  defp parse(<<0b1000::4, opcode::4, 1::1, 126::7, length::16, rest::binary>>),
    do: parse(opcode, length, rest)

  defp parse(<<0b1000::4, opcode::4, 1::1, length::7, rest::binary>>) when length < 126,
    do: parse(opcode, length, rest)

  defp parse(<<0b1000::4, _opcode::4, 1::1, _rest::bitstring>>), do: :more
  defp parse(bytes) when byte_size(bytes) < 2, do: :more

  defp parse(opcode, length, bytes) do
    case bytes do
      <<key::binary-4, rest::binary>> when byte_size(rest) >= length ->
        payload = binary_part(rest, 0, length)
        {{opcode, unmask(payload, key)}, binary_part(rest, length, byte_size(rest) - length)}

      _part ->
        :more
    end
  end

  defp unmask(payload, key) do
    pad = :binary.copy(key, div(byte_size(payload), 4) + 1)
    :crypto.exor(payload, binary_part(pad, 0, byte_size(payload)))
  end
end
