defmodule Barytherium.Network.Socket do
  @moduledoc false
  # Differences between the kinds of sockets that the receive loop takes: a `:gen_tcp` port, a
  # `:gen_tcp` socket with `inet_backend: :socket`, native TLS over either of them, an `:ssl`
  # socket, and a WebSocket over any of these.

  alias Barytherium.{Connection, Native}
  alias Barytherium.Connection.{TlsSocket, WebSocket}

  # The names of ports that are sockets for TCP, or local ones.
  @tcp_drivers [~c"tcp_inet", ~c"local_tcp", ~c"afunix_inet"]

  @type monitor :: reference()

  @doc """
  Raises `ArgumentError` if the receive loop cannot read the socket. It must be passive and raw. A
  closed socket passes; the loop reports that it is closed.
  """
  @spec check!(Connection.socket()) :: :ok
  def check!(%WebSocket{socket: socket}), do: check!(socket)

  def check!(socket) do
    check_kind!(socket)

    case getopts(socket, [:active, :packet]) do
      {:ok, options} -> Enum.each(options, &check_option!/1)
      {:error, _closed} -> :ok
    end
  end

  defp check_kind!(port) when is_port(port) and node(port) != node(),
    do: raise(ArgumentError, "the socket is a port of another node, #{node(port)}")

  defp check_kind!(port) when is_port(port) do
    case :erlang.port_info(port, :name) do
      {:name, name} when name not in @tcp_drivers ->
        raise ArgumentError, "the socket is no TCP socket, but a port of #{name}"

      _tcp_or_closed ->
        :ok
    end
  end

  defp check_kind!({:"$inet", :gen_tcp_socket, _socket}), do: :ok
  defp check_kind!(%TlsSocket{}), do: :ok

  defp check_kind!(socket) do
    otp_tls?(socket) ||
      raise ArgumentError, "not a socket of :gen_tcp or :ssl: #{inspect(socket)}"
  end

  defp check_option!({:active, active}) when active != false do
    raise ArgumentError, "the socket must be passive, and is active: #{inspect(active)}"
  end

  defp check_option!({:packet, packet}) when packet not in [:raw, 0] do
    raise ArgumentError, "the socket must be raw, and has packet: #{inspect(packet)}"
  end

  defp check_option!(_option), do: :ok

  defp getopts(socket, names) do
    if otp_tls?(socket),
      do: :ssl.getopts(transport(socket), names),
      else: :inet.getopts(transport(socket), names)
  end

  defp otp_tls?(socket), do: Connection.tls(socket) == :otp

  @doc "The TLS session of the native side, if it has one."
  @spec tls(Connection.socket()) :: nil | Native.tls()
  def tls(%WebSocket{socket: socket}), do: tls(socket)
  def tls(%TlsSocket{tls: tls}), do: tls
  def tls(_socket), do: nil

  @doc "The WebSocket of the native side, if it has one."
  @spec websocket(Connection.socket()) :: nil | Native.websocket()
  def websocket(%WebSocket{websocket: websocket}), do: websocket
  def websocket(_socket), do: nil

  @doc "The `:gen_tcp` socket that is read from, or the `:ssl` socket, which hides its own."
  @spec transport(Connection.socket()) :: :gen_tcp.socket() | :ssl.sslsocket()
  def transport(%WebSocket{socket: socket}), do: transport(socket)
  def transport(%TlsSocket{socket: socket}), do: socket
  def transport(socket), do: socket

  @doc "Whether the socket has this option, with which `:gen_tcp` tells a reset from a close."
  @spec show_econnreset?(Connection.socket()) :: boolean()
  def show_econnreset?(socket) do
    not otp_tls?(socket) and
      getopts(socket, [:show_econnreset]) == {:ok, [show_econnreset: true]}
  end

  @doc "The peer's address for log messages, or `the peer` if it is unknown."
  @spec peer(Connection.socket()) :: String.t()
  def peer(socket) do
    peername = if otp_tls?(socket), do: &:ssl.peername/1, else: &:inet.peername/1

    case peername.(transport(socket)) do
      {:ok, {address, port}} when is_tuple(address) -> "#{:inet.ntoa(address)}:#{port}"
      _other -> "the peer"
    end
  end

  @doc "The descriptor of a `:gen_tcp` socket."
  @spec descriptor(:gen_tcp.socket()) :: {:ok, non_neg_integer()} | {:error, term()}
  def descriptor({:"$inet", :gen_tcp_socket, {_pid, socket}}),
    do: :socket.getopt(socket, {:otp, :fd})

  def descriptor(socket), do: :inet.getfd(socket)

  @doc """
  Bytes that the driver has already read from the socket. Call this before `descriptor/1`: after an
  error the driver closes the descriptor.
  """
  @spec leftover(Connection.socket()) :: {:ok, binary()} | {:error, atom()}
  def leftover(%WebSocket{socket: socket}), do: leftover(socket)
  # It asks the driver for all that there is, so nothing is left.
  def leftover(%TlsSocket{}), do: {:ok, ""}

  def leftover(socket) do
    case :gen_tcp.recv(socket, 0, 0) do
      {:ok, bytes} -> {:ok, IO.iodata_to_binary(bytes)}
      {:error, :timeout} -> {:ok, ""}
      {:error, reason} -> {:error, reason}
    end
  end

  @doc "Monitors the socket. `{:DOWN, monitor, _, _, _}` arrives when this side closes it."
  @spec monitor(:gen_tcp.socket()) :: monitor()
  def monitor({:"$inet", :gen_tcp_socket, {_pid, socket}}), do: :socket.monitor(socket)
  def monitor(socket), do: :erlang.monitor(:port, socket)
end
