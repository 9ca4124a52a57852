defmodule Barytherium.Connection do
  @moduledoc """
  A connection over TCP or TLS: passive, binary and raw.

  What is returned by `connect/3` is a socket of `:gen_tcp` or `:ssl`, and either kind does for
  every function here and for `Barytherium.Network.Receiver`.
  """

  alias Barytherium.Network.Options

  # A TLS record: with the driver's own default, of 1,460 octets, `:ssl` reads in so small pieces
  # that it reaches a quarter of the throughput.
  @tls_buffer 16 * 1024

  # In milliseconds: enough for an alert to be written.
  @longest_tls_close 1_000

  @type host :: :inet.hostname() | String.t() | :inet.socket_address()
  @type socket :: :gen_tcp.socket() | :ssl.sslsocket()

  @doc """
  Connects to `host`, which is a charlist, a string, an IP address or `{:local, path}`.

  Options: `:secure`, `:send_timeout`, `:buffer`, `:receive_buffer` and `:send_buffer` as for
  `Barytherium.Network.start_link/4`. Others go to `:gen_tcp.connect/3`, or with `secure: true`
  to `:ssl.connect/3`.

  The error is an atom: a POSIX one, `:nxdomain`, or the name of a TLS alert.
  """
  @spec connect(host(), :inet.port_number(), [term()]) :: {:ok, socket()} | {:error, atom()}
  def connect(host, port, opts \\ []) do
    {options, transport} = Options.split(opts)
    socket_options = nagle(host) ++ socket_options(options) ++ transport

    if options.secure,
      do: host |> address() |> :ssl.connect(port, socket_options) |> simplify_error(),
      else: host |> address() |> :gen_tcp.connect(port, socket_options)
  end

  @doc "Receives `length` octets, or with 0 what there is, within `timeout` milliseconds."
  @spec recv(socket(), non_neg_integer(), timeout()) :: {:ok, binary()} | {:error, term()}
  def recv(socket, length, timeout) do
    if tls?(socket),
      do: :ssl.recv(socket, length, timeout),
      else: :gen_tcp.recv(socket, length, timeout)
  end

  @doc "Sends `data`, all of it."
  @spec send(socket(), iodata()) :: :ok | {:error, term()}
  def send(socket, data) do
    if tls?(socket), do: :ssl.send(socket, data), else: :gen_tcp.send(socket, data)
  end

  @doc "Closes the socket. Closing a closed one is fine."
  @spec close(socket()) :: :ok
  def close(socket) do
    if tls?(socket), do: close_tls(fn -> :ssl.close(socket) end), else: :gen_tcp.close(socket)
    :ok
  end

  @doc false
  # Closes without waiting for what is still to be sent: a peer that does not read would hold that
  # up for minutes.
  @spec abandon(socket()) :: :ok
  def abandon(socket) do
    linger = [linger: {true, 0}]

    if tls?(socket) do
      close_tls(fn ->
        :ssl.setopts(socket, linger)
        :ssl.close(socket)
      end)
    else
      :inet.setopts(socket, linger)
      :gen_tcp.close(socket)
    end

    :ok
  end

  # `:ssl.close/1` waits for what is still to be sent. It is not waited for longer than this.
  defp close_tls(close) do
    {_pid, monitor} = spawn_monitor(close)

    receive do
      {:DOWN, ^monitor, :process, _pid, _reason} -> :ok
    after
      @longest_tls_close -> Process.demonitor(monitor, [:flush])
    end
  end

  @doc false
  @spec tls?(socket()) :: boolean()
  def tls?(socket), do: is_tuple(socket) and elem(socket, 0) == :sslsocket

  defp address(host) when is_binary(host), do: String.to_charlist(host)
  defp address(host), do: host

  defp socket_options(options) do
    sizes = [
      buffer: options.buffer || if(options.secure, do: @tls_buffer),
      recbuf: options.receive_buffer,
      sndbuf: options.send_buffer
    ]

    [:binary, active: false, packet: :raw, send_timeout: options.send_timeout] ++
      Enum.reject(sizes, &match?({_name, nil}, &1))
  end

  # Small frames (acknowledgements, heart-beats) must not wait for one another.
  defp nagle({:local, _path}), do: []
  defp nagle(_host), do: [nodelay: true]

  defp simplify_error({:error, {:tls_alert, {alert, _text}}}), do: {:error, alert}
  defp simplify_error({:error, {:options, _option}}), do: {:error, :options}
  defp simplify_error(other), do: other
end
