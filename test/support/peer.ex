defmodule Barytherium.Peer do
  @moduledoc """
  A scripted peer: the other end of a connection. It sends only what a test tells it to send.
  """

  import Kernel, except: [send: 2]

  alias Barytherium.{Certificates, Connection, WebSocketPeer}

  @transports [:tcp, :socket, :tls, :ssl, :ws, :wss, :wss_otp]

  @doc """
  The kinds of socket that the receive loop reads from: plain ones of both backends, native TLS,
  `:ssl`, and WebSockets over three of these. With TLS the peer is one of `:ssl` in any case.
  """
  def transports, do: @transports

  @doc """
  A connected pair of sockets: `{client, peer}`. Both are passive, and owned by the calling process.
  """
  def pair(transport \\ :tcp, opts \\ []) do
    listener = listen(transport)
    port = port(listener)
    accepting = Task.async(fn -> accept_for(self(), listener, transport) end)
    {:ok, client} = connect(transport, port, opts)
    peer = Task.await(accepting)
    close(listener)
    {client, peer}
  end

  @doc "Listens on a free port of the loopback interface."
  def listen(transport) when transport in [:tls, :ssl, :wss, :wss_otp] do
    {:ok, listener} =
      :ssl.listen(0, [ip: {127, 0, 0, 1}, reuseaddr: true] ++ certificate() ++ mode())

    listener
  end

  def listen(_transport) do
    {:ok, listener} = :gen_tcp.listen(0, [ip: {127, 0, 0, 1}, reuseaddr: true] ++ mode())
    listener
  end

  def port(listener) do
    {:ok, {_address, port}} =
      if tls_listener?(listener), do: :ssl.sockname(listener), else: :inet.sockname(listener)

    port
  end

  @doc "Accepts a connection. The calling process owns the socket."
  def accept(listener, transport \\ :tcp)

  def accept(listener, transport) when transport in [:ws, :wss, :wss_otp],
    do: listener |> accept() |> WebSocketPeer.accept()

  def accept(listener, _transport) do
    if tls_listener?(listener) do
      {:ok, socket} = :ssl.transport_accept(listener)
      {:ok, socket} = :ssl.handshake(socket)
      socket
    else
      {:ok, socket} = :gen_tcp.accept(listener)
      socket
    end
  end

  defp accept_for(_task, listener, transport) do
    [owner | _] = Process.get(:"$callers")
    peer = accept(listener, transport)
    :ok = peer |> socket() |> Connection.give(owner)
    peer
  end

  @doc "The socket of a peer."
  def socket(%WebSocketPeer{socket: socket}), do: socket
  def socket(socket), do: socket

  defp connect(:socket, port, opts) do
    :gen_tcp.connect({127, 0, 0, 1}, port, [{:inet_backend, :socket}] ++ opts ++ mode())
  end

  defp connect(transport, port, opts),
    do: Connection.connect("127.0.0.1", port, options(transport) ++ opts)

  @doc "The options that a client needs for this transport."
  def options(:tls), do: [secure: true, verify: :verify_none]
  def options(:ssl), do: [tls: :otp] ++ options(:tls)
  def options(:ws), do: [websocket: "/ws"]
  def options(:wss), do: options(:ws) ++ options(:tls)
  def options(:wss_otp), do: options(:ws) ++ options(:ssl)
  def options(_plain), do: []

  def send(peer, data), do: :ok = try_send(peer, data)

  @doc "The same, but returns the error."
  def try_send(%WebSocketPeer{} = peer, data), do: WebSocketPeer.send(peer, data)
  def try_send(peer, data), do: Connection.send(peer, data)

  @doc "Sends `data`, and closes."
  def send_all(peer, data) do
    __MODULE__.send(peer, data)
    close(peer)
  end

  @doc "Receives `length` bytes, or with 0 what has arrived, waiting for at least one byte."
  def recv(peer, length \\ 0, timeout \\ 2_000)

  def recv(%WebSocketPeer{} = peer, length, timeout),
    do: WebSocketPeer.recv(peer, length, timeout)

  def recv(peer, length, timeout), do: Connection.recv(peer, length, timeout)

  @doc "Everything until the connection ends, and the reason of the end."
  def read_all(peer, read \\ []) do
    case recv(peer, 0, 5_000) do
      {:ok, data} -> read_all(peer, [read, data])
      {:error, reason} -> {IO.iodata_to_binary(read), reason}
    end
  end

  @doc "Sends `data` byte by byte, with one call for each byte."
  def send_bytes(peer, data) do
    for <<byte <- data>>, do: send(peer, <<byte>>)
  end

  @doc "Waits until the other end has closed. Drops what it sent before."
  def assert_closed(peer) do
    case recv(peer) do
      {:ok, _data} -> assert_closed(peer)
      {:error, reason} when reason in [:closed, :econnreset] -> :ok
    end
  end

  def close(peer), do: peer |> socket() |> Connection.close()

  @doc "Closes with a reset (RST) instead of FIN."
  def reset(peer), do: peer |> socket() |> Connection.abandon()

  defp mode, do: [mode: :binary, active: false]

  defp tls_listener?(listener), do: Connection.tls(listener) == :otp

  # Made once in each run of the tests.
  defp certificate do
    case :persistent_term.get(__MODULE__, nil) do
      nil ->
        certificate = Keyword.take(Certificates.make(["localhost"]).server, [:cert, :key])
        :persistent_term.put(__MODULE__, certificate)
        certificate

      certificate ->
        certificate
    end
  end
end
