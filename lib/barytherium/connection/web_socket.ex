defmodule Barytherium.Connection.WebSocket do
  @moduledoc false
  # STOMP in a WebSocket (RFC 6455), over TCP or TLS. This module does the opening handshake and moves the bytes; the
  # native side has the frames. The receive loop reads from the socket itself.
  #
  # Each STOMP frame is a message, as ActiveMQ wants it. As with TLS, only one process at a time may write.

  alias Barytherium.Connection.{Deadline, Http, Transport}
  alias Barytherium.Native

  # The subprotocols that the registry of the IANA has for STOMP.
  @subprotocols ["v12.stomp", "v11.stomp", "v10.stomp"]

  # Appended to the key (RFC 6455, 1.3).
  @guid "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

  # What the handshake sets itself.
  @reserved ~w(host upgrade connection content-length transfer-encoding)

  @enforce_keys [:socket, :websocket]
  defstruct [:socket, :websocket]

  @type t :: %__MODULE__{socket: Transport.socket(), websocket: Native.websocket()}
  @type error :: atom() | {:tls_alert, {atom(), iodata()}}

  @doc """
  Asks the server for a WebSocket at `path`, on an open socket, until `deadline`. Closes the socket if that fails.
  """
  @spec open(Transport.socket(), String.t(), String.t(), Http.headers(), Deadline.t()) ::
          {:ok, t()} | {:error, error() | {:upgrade_refused, String.t()}}
  def open(socket, authority, path, headers, deadline) do
    key = Base.encode64(:crypto.strong_rand_bytes(16))

    own = [
      {"host", authority},
      {"upgrade", "websocket"},
      {"connection", "Upgrade"},
      {"sec-websocket-key", key},
      {"sec-websocket-version", "13"},
      {"sec-websocket-protocol", Enum.join(@subprotocols, ", ")}
    ]

    result =
      case Http.request(socket, ["GET ", path], own ++ headers, deadline) do
        {:ok, answer} -> check(answer, key)
        {:error, :no_http} -> {:error, refused("its answer is no HTTP")}
        {:error, reason} -> {:error, reason}
      end

    case result do
      {:ok, rest} ->
        {:ok, %__MODULE__{socket: socket, websocket: Native.websocket_open(rest)}}

      {:error, reason} ->
        Transport.of(socket).close(socket)
        {:error, reason}
    end
  end

  # RFC 6455, 4.1.
  defp check({101, _phrase, headers, rest}, key) do
    accept = Base.encode64(:crypto.hash(:sha, key <> @guid))

    cond do
      "websocket" not in tokens(headers, "upgrade") or
          "upgrade" not in tokens(headers, "connection") ->
        {:error, refused("it switches to something else")}

      values(headers, "sec-websocket-accept") != [accept] ->
        {:error, refused("it has not answered to our key")}

      values(headers, "sec-websocket-extensions") != [] ->
        {:error, refused("it uses an extension that was not offered")}

      values(headers, "sec-websocket-protocol") -- @subprotocols != [] ->
        {:error, refused("it speaks another protocol than STOMP")}

      true ->
        {:ok, rest}
    end
  end

  defp check({status, phrase, headers, _rest}, _key) do
    # Not followed: the credentials are for the server that was named.
    location = for value <- values(headers, "location"), do: elsewhere(URI.new(value))
    {:error, refused("#{status} #{phrase}#{location}")}
  end

  # The rest of it may be secret.
  defp elsewhere({:ok, %URI{scheme: scheme, host: host, port: port}}) when is_binary(host),
    do: ", elsewhere: #{scheme}://#{host}:#{port}"

  defp elsewhere(_path), do: ", elsewhere"

  defp refused(text), do: {:upgrade_refused, text}

  defp values(headers, name), do: for({^name, value} <- headers, do: String.trim(value))

  defp tokens(headers, name) do
    for value <- values(headers, name),
        token <- String.split(value, ","),
        do: token |> String.trim() |> String.downcase()
  end

  @doc "Whether these can be headers of the opening handshake, besides those that it sets itself."
  @spec headers?(term()) :: boolean()
  def headers?(headers) when is_list(headers),
    do: not List.improper?(headers) and Enum.all?(headers, &header?/1)

  def headers?(_other), do: false

  defp header?({name, value}) when is_binary(name) and is_binary(value) do
    low = String.downcase(name)

    name =~ ~r/\A[!#$%&'*+\-.^_`|~0-9A-Za-z]+\z/ and not (value =~ ~r/[\r\n\0]/) and
      low not in @reserved and not String.starts_with?(low, "sec-websocket-")
  end

  defp header?(_other), do: false

  @doc "Receives payload as `:gen_tcp.recv/3` does bytes."
  @spec recv(t(), non_neg_integer(), timeout()) :: {:ok, binary()} | {:error, error()}
  def recv(connection, length, timeout), do: read(connection, "", length, Deadline.in_ms(timeout))

  defp read(%{socket: socket, websocket: websocket} = connection, bytes, length, deadline) do
    case Native.websocket_read(websocket, bytes, length) do
      {:ok, data} ->
        {:ok, data}

      :more ->
        with {:ok, bytes} <- Transport.of(socket).recv(socket, 0, Deadline.left(deadline)),
             do: read(connection, bytes, length, deadline)

      reason ->
        {:error, reason}
    end
  end

  @doc "Sends `data` as a message, and what the reading side has left to be sent."
  @spec send(t(), iodata()) :: :ok | {:error, error()}
  def send(connection, data) do
    with :ok <- send_owed(connection),
         do: send_framed(connection, Native.websocket_message(data))
  end

  @doc "Sends data that are frames of a WebSocket already."
  @spec send_framed(t(), iodata()) :: :ok | {:error, error()}
  def send_framed(%{socket: socket}, data), do: Transport.of(socket).send(socket, data)

  @doc "Sends what the reading side has left to be sent: a pong, or a close frame."
  @spec send_owed(t()) :: :ok | {:error, error()}
  def send_owed(%{websocket: websocket} = connection) do
    case Native.websocket_owed(websocket) do
      "" ->
        :ok

      {:closed, frame} ->
        send_framed(connection, frame)
        {:error, :closed}

      frame ->
        send_framed(connection, frame)
    end
  end

  @doc "Sends a close frame (RFC 6455, 7.1.2), and closes the socket for writing."
  @spec shutdown(t(), :write) :: :ok | {:error, error()}
  def shutdown(%{socket: socket} = connection, :write) do
    with :ok <- send_close(connection), do: Transport.of(socket).shutdown(socket, :write)
  end

  @doc "Sends a close frame, unless one was sent, and closes the socket."
  @spec close(t()) :: :ok
  def close(%{socket: socket} = connection) do
    send_close(connection)
    Transport.of(socket).close(socket)
    :ok
  end

  defp send_close(%{websocket: websocket} = connection) do
    case Native.websocket_close(websocket) do
      "" -> :ok
      frame -> send_framed(connection, frame)
    end
  end

  @doc "Makes `pid` the owner."
  @spec controlling_process(t(), pid()) :: :ok | {:error, atom()}
  def controlling_process(%{socket: socket}, pid),
    do: Transport.of(socket).controlling_process(socket, pid)
end
