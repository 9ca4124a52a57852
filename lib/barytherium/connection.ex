defmodule Barytherium.Connection do
  @moduledoc """
  Opens and uses passive, binary, raw sockets over TCP or TLS, or WebSockets.

  `connect/3` returns a socket of `:gen_tcp`, or with `secure: true` or `:websocket` one of this library or of `:ssl`.
  All functions here and `Barytherium.Network.Receiver` take each of them.
  """

  require Logger

  alias Barytherium.Text
  alias Barytherium.Connection.{Deadline, Http, Options, Tls, TlsSocket, Transport, WebSocket}

  # The size of a TLS record. With the driver's default of 1,460 bytes `:ssl` reads in such small
  # pieces that it reaches only a quarter of the throughput.
  @tls_buffer 16 * 1024

  # In milliseconds. This is enough to write an alert.
  @longest_tls_close 1_000

  # Bytes of an answer of a proxy or server that are of use in a log.
  @longest_text 200

  # `sun_path` has 104 bytes on macOS and 108 on Linux. This is the smaller one without its NUL.
  @longest_path 103

  @type host :: :inet.hostname() | String.t() | :inet.socket_address()
  @type socket :: Transport.socket() | WebSocket.t()

  @typedoc "An option of `connect/3`, see `Barytherium.Network.start_link/4`."
  @type option :: {atom(), term()} | atom()

  @doc """
  Connects to a server and returns the socket.

  `host` is a charlist, a string, an IP address or `{:local, path}`. If a name has several addresses,
  all of them are tried: first IPv4, then IPv6. The options `:inet` and `:inet6` restrict this.

  Options are `:secure`, `:websocket`, `:upgrade_headers`, `:proxy`, `:connect_timeout`, `:send_timeout`, `:buffer`,
  `:receive_buffer` and `:send_buffer` as for `Barytherium.Network.start_link/4`, and those of `:gen_tcp.connect/3` and
  `:ssl.connect/3`.

  With `secure: true` the server's certificate must be valid for the host's name or address, and the
  system must trust it. These options change that:

    * `:cacerts` or `:cacertfile` - trust these CA certificates instead of the system's;
    * `:server_name_indication` - expect this name;
    * `verify: :verify_none` - do not verify the server. This is logged.

  The error is an atom: a POSIX error, `:nxdomain`, `:timeout`, the name of a TLS alert, `:options` for TLS options that
  cannot be used, `:upgrade_headers` if the function for these has failed, `:proxy_refused` or `:upgrade_refused` if the
  proxy or the server answers so. Further details are logged.

  Raises `ArgumentError` for an invalid option, host or port.
  """
  @spec connect(host(), :inet.port_number(), [option()]) :: {:ok, socket()} | {:error, atom()}
  def connect(host, port, opts \\ []) do
    {options, tcp, tls} = Options.split(opts)
    check_address!(host, port)
    check_proxy!(host, options.proxy)
    deadline = Deadline.in_ms(options.connect_timeout)
    {to_host, to_port} = via(options.proxy, host, port)

    result =
      with {:ok, addresses} <- addresses(to_host, tcp, deadline),
           {:ok, plan} <- plan(host, port, tls, options),
           do: try_each(addresses, to_port, plan, &(socket_options(options, &1) ++ tcp), deadline)

    with {:error, reason} <- result, do: {:error, reason(reason, peer(host, port))}
  end

  @doc false
  # The host and port that the user gave, for log messages.
  @spec peer(host(), :inet.port_number()) :: String.t()
  def peer({:local, path}, _port), do: to_string(path)
  def peer(address, port) when is_tuple(address), do: "#{:inet.ntoa(address)}:#{port}"
  def peer(host, port), do: "#{host}:#{port}"

  @doc false
  # Raises `ArgumentError` for an invalid host or port.
  @spec check_address!(term(), term()) :: :ok
  def check_address!({:local, path}, _port) do
    unless is_binary(path) or (is_list(path) and List.ascii_printable?(path)) do
      raise ArgumentError, "the path of a local socket is not a string: #{inspect(path)}"
    end

    unless IO.iodata_length(path) in 1..@longest_path do
      raise ArgumentError, "the path of a local socket has 1 to #{@longest_path} bytes"
    end

    :ok
  end

  def check_address!(host, port) do
    host?(host) || raise ArgumentError, "not a host: #{inspect(host)}"

    unless is_integer(port) and port in 0..65_535 do
      raise ArgumentError, "not a port, which is an integer from 0 to 65535: #{inspect(port)}"
    end

    :ok
  end

  # A blank or a line end would be the end of it in a request to a proxy.
  defp host?(host) when is_binary(host),
    do: host != "" and String.valid?(host) and not (host =~ ~r/[\x00-\x20\x7f]/)

  defp host?([_ | _] = host), do: List.ascii_printable?(host) and host?(to_string(host))
  defp host?(host) when is_atom(host), do: host not in [nil, true, false]
  defp host?(host) when is_tuple(host), do: match?({:ok, _}, address_string(host))

  defp host?(_other), do: false

  defp address_string(address) do
    case :inet.ntoa(address) do
      {:error, _einval} -> :error
      text -> {:ok, text}
    end
  end

  # Returns `{address, options}` for each address. IPv6 needs the option `:inet6`.
  defp addresses({:local, _path} = host, _transport, _deadline), do: {:ok, [{host, []}]}

  defp addresses(host, transport, deadline) do
    families = Enum.filter([:inet, :inet6], &(&1 in transport))

    case parse_address(host) do
      {:ok, address} -> {:ok, [{address, family(address) -- transport}]}
      :error when families == [] -> look_up(host, [:inet, :inet6], transport, deadline)
      :error -> look_up(host, families, transport, deadline)
    end
  end

  defp family(address) when tuple_size(address) == 8, do: [:inet6]
  defp family(_address), do: []

  # Returns `:error` for a name such as `localhost`.
  defp parse_address(host) when is_tuple(host), do: {:ok, host}
  defp parse_address(host) when is_atom(host), do: :error

  defp parse_address(host) do
    case host |> to_charlist() |> :inet.parse_strict_address() do
      {:ok, address} -> {:ok, address}
      {:error, :einval} -> :error
    end
  end

  defp look_up(host, families, transport, deadline) do
    name = if is_atom(host), do: host, else: to_charlist(host)
    results = Enum.map(families, &:inet.gethostbyname(name, &1, Deadline.left(deadline)))

    found =
      for {:ok, {:hostent, _name, _aliases, _type, _length, addresses}} <- results,
          address <- addresses,
          do: {address, family(address) -- transport}

    if found == [], do: hd(results), else: {:ok, found}
  end

  defp check_proxy!({:local, _path}, proxy) when proxy != nil,
    do: raise(ArgumentError, "option :proxy: there is no proxy to a local socket")

  defp check_proxy!(_host, _proxy), do: :ok

  defp via(nil, host, port), do: {host, port}
  defp via(proxy, _host, _port), do: {proxy.host, proxy.port}

  # What is done when there is a connection: a tunnel through a proxy, TLS, and a WebSocket.
  defp plan(host, port, tls, options) do
    with {:ok, tls} <- tls_plan(host, tls, options),
         {:ok, headers} <- Options.upgrade_headers(options.upgrade_headers) do
      name = host_name(host)
      proxy = options.proxy && {options.proxy, Http.authority(name, port)}
      default = if options.secure, do: 443, else: 80

      websocket =
        options.websocket && {Http.authority(name, port, default), options.websocket, headers}

      {:ok, %{proxy: proxy, tls: tls, websocket: websocket}}
    end
  end

  defp host_name({:local, _path}), do: "localhost"
  defp host_name(address) when is_tuple(address), do: address |> :inet.ntoa() |> to_string()
  defp host_name(host), do: to_string(host)

  defp tls_plan(_host, _tls, %{secure: false}), do: {:ok, :tcp}

  defp tls_plan(host, tls, options) do
    case Tls.plan(host, tls, options.tls) do
      {:error, reason} -> {:error, reason}
      {:otp, opts} when options.proxy != nil -> Tls.behind_proxy(host, opts)
      plan -> {:ok, plan}
    end
  end

  # Each address gets an equal part of the time that is left.
  defp try_each([{address, family} | more], port, plan, options, deadline) do
    part = part(Deadline.left(deadline), length(more) + 1)

    case connect_to(plan, address, port, family ++ options.(address), part) do
      # An error that is not an atom (an untrusted server, unusable options) is reported at once. No
      # other address is tried after it.
      {:error, reason} when more != [] and is_atom(reason) ->
        others = try_each(more, port, plan, options, deadline)
        with {:error, other} when is_atom(other) <- others, do: {:error, reason}

      result ->
        result
    end
  end

  defp connect_to(plan, address, port, opts, timeout) do
    deadline = Deadline.in_ms(timeout)

    with {:ok, socket} <- connect_transport(plan, address, port, opts, deadline),
         do: upgrade(socket, plan.websocket, deadline)
  end

  defp connect_transport(%{proxy: nil, tls: {:otp, tls}}, address, port, opts, deadline),
    do: :ssl.connect(address, port(address, port), opts ++ tls, Deadline.left(deadline))

  defp connect_transport(plan, address, port, opts, deadline) do
    with {:ok, socket} <- connect_tcp(address, port, opts, Deadline.left(deadline)),
         {:ok, socket} <- tunnel(socket, plan.proxy, deadline),
         do: secure(socket, plan.tls, deadline)
  end

  defp tunnel(socket, nil, _deadline), do: {:ok, socket}

  defp tunnel(socket, {proxy, authority}, deadline) do
    case Http.tunnel(socket, proxy, authority, deadline) do
      :ok ->
        {:ok, socket}

      {:error, reason} ->
        :gen_tcp.close(socket)
        {:error, reason}
    end
  end

  defp secure(socket, :tcp, _deadline), do: {:ok, socket}

  defp secure(socket, {:native, settings, name}, deadline),
    do: TlsSocket.handshake(socket, settings, name, deadline)

  defp secure(socket, {:otp, tls}, deadline) do
    with {:error, reason} <- :ssl.connect(socket, tls, Deadline.left(deadline)) do
      :gen_tcp.close(socket)
      {:error, reason}
    end
  end

  defp upgrade(socket, nil, _deadline), do: {:ok, socket}

  defp upgrade(socket, {authority, path, headers}, deadline),
    do: WebSocket.open(socket, authority, path, headers, deadline)

  defp connect_tcp(address, port, opts, timeout) do
    # `:gen_tcp` wants `:inet_backend` to be the first option.
    {backend, opts} = Enum.split_with(opts, &match?({:inet_backend, _backend}, &1))
    :gen_tcp.connect(address, port(address, port), backend ++ opts, timeout)
  end

  defp port({:local, _path}, _port), do: 0
  defp port(_address, port), do: port

  defp part(:infinity, _count), do: :infinity
  defp part(left, count), do: div(left, count)

  @doc false
  # Converts an error of a socket to `peer` to an atom, and logs what the atom leaves out.
  @spec reason(term(), String.t()) :: atom()
  def reason(reason, _peer) when is_atom(reason), do: reason

  # With these alerts the peer closes (RFC 8446, 6.1). Java sends `user_canceled` first.
  def reason({:tls_alert, {alert, _text}}, _peer) when alert in [:close_notify, :user_canceled],
    do: :closed

  def reason({:tls_alert, {alert, text}}, peer) do
    Logger.error("TLS: #{peer}: #{text}#{hint(alert, text)}")
    Tls.reason(alert, text)
  end

  def reason({:options, _details} = reason, peer) do
    Logger.error("TLS: #{peer}: cannot use the options: #{Tls.describe(reason)}")
    :options
  end

  def reason({:proxy_refused, text}, peer) do
    Logger.error("the proxy refuses a connection to #{peer}: #{said(text)}")
    :proxy_refused
  end

  def reason({:upgrade_refused, text}, peer) do
    Logger.error("#{peer} refuses the WebSocket: #{said(text)}")
    :upgrade_refused
  end

  def reason({:upgrade_headers, what}, peer) do
    Logger.error("#{peer}: the function for :upgrade_headers failed (#{what})")
    :upgrade_headers
  end

  # A socket of `inet_backend: :socket` returns the data that was not written.
  def reason({:timeout, _data}, _peer), do: :timeout

  # The reason is not logged, because it may contain data of the connection.
  def reason(_other, peer) do
    Logger.error("the connection to #{peer} failed for a reason that is not known")
    :closed
  end

  # Of what another says.
  defp said(text), do: text |> binary_slice(0, @longest_text) |> Text.line()

  # What OTP's `:ssl` may accept. The text of native TLS is a string, and that of `:ssl` a charlist.
  @stricter [
    :handshake_failure,
    :decrypt_error,
    :certificate_unknown,
    :unsupported_certificate,
    :hostname_check_failed
  ]

  defp hint(alert, text) when alert in @stricter and is_binary(text),
    do: " (with tls: :otp it may work, see \"Differences\" in the guide about TLS)"

  defp hint(:unexpected_message, text) when is_list(text),
    do: " (does the server speak TLS on this port?)"

  defp hint(_alert, _text), do: ""

  @doc """
  Receives `length` bytes, or whatever is available if `length` is 0. Waits for at most `timeout`
  milliseconds.
  """
  @spec recv(socket(), non_neg_integer(), timeout()) :: {:ok, binary()} | {:error, term()}
  def recv(socket, length, timeout), do: transport(socket).recv(socket, length, timeout)

  @doc """
  Sends all of `data`; in a WebSocket as a message. With TLS and in a WebSocket, only one process at a time may send.
  """
  @spec send(socket(), iodata()) :: :ok | {:error, term()}
  def send(socket, data), do: transport(socket).send(socket, data)

  @doc false
  # How `send_framed/2` wants its data: STOMP's frames one after the other, or each in a message.
  @spec framing(socket()) :: :stream | :messages
  def framing(%WebSocket{}), do: :messages
  def framing(_socket), do: :stream

  @doc false
  @spec send_framed(socket(), iodata()) :: :ok | {:error, term()}
  def send_framed(%WebSocket{} = socket, data), do: WebSocket.send_framed(socket, data)
  def send_framed(socket, data), do: __MODULE__.send(socket, data)

  @doc false
  # Sends what has to come before framed data, and cannot be in the middle of it.
  @spec send_owed(socket()) :: :ok | {:error, term()}
  def send_owed(%WebSocket{} = socket), do: WebSocket.send_owed(socket)
  def send_owed(_socket), do: :ok

  @doc false
  # Sends what the reading side owes the peer.
  @spec flush(socket()) :: :ok | {:error, term()}
  def flush(socket), do: with(:ok <- send_owed(socket), do: send_framed(socket, ""))

  @doc false
  # Whether the peer is to be told before the socket is closed.
  @spec takes_leave?(socket()) :: boolean()
  def takes_leave?(%WebSocket{}), do: true
  def takes_leave?(socket), do: tls(socket) == :native

  @doc "Closes the socket. It may already be closed."
  @spec close(socket()) :: :ok
  def close(socket) do
    if takes_leave?(socket) or tls(socket) == :otp,
      do: close_tls(fn -> transport(socket).close(socket) end),
      else: :gen_tcp.close(socket)

    :ok
  end

  @doc false
  # Closes the socket for writing. The peer gets what was written, and then the end of the stream.
  @spec shutdown(socket()) :: :ok | {:error, term()}
  def shutdown(socket), do: transport(socket).shutdown(socket, :write)

  @doc false
  # Reads and discards what the peer still sends, until it closes, for at most `timeout` milliseconds.
  # Closing with unread data would reset the connection, and the peer could lose what it has not read
  # yet. No other process may read from the socket.
  @spec discard(socket(), non_neg_integer()) :: :ok
  def discard(socket, timeout), do: discard_until(socket, Deadline.in_ms(timeout))

  defp discard_until(%TlsSocket{socket: socket}, deadline), do: discard_until(socket, deadline)
  defp discard_until(%WebSocket{socket: socket}, deadline), do: discard_until(socket, deadline)

  defp discard_until(socket, deadline) do
    case recv(socket, 0, Deadline.left(deadline)) do
      {:ok, _data} -> discard_until(socket, deadline)
      {:error, _closed} -> :ok
    end
  end

  @doc false
  # Closes without waiting for unsent data. A peer that does not read could delay that for minutes.
  @spec abandon(socket()) :: :ok
  def abandon(%TlsSocket{socket: socket}), do: abandon(socket)
  def abandon(%WebSocket{socket: socket}), do: abandon(socket)

  def abandon(socket) do
    linger = [linger: {true, 0}]

    if Transport.of(socket) == :ssl do
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

  # This waits until an alert and unsent data are sent, but not longer than `@longest_tls_close`.
  defp close_tls(close) do
    {_pid, monitor} = spawn_monitor(close)

    receive do
      {:DOWN, ^monitor, :process, _pid, _reason} -> :ok
    after
      @longest_tls_close -> Process.demonitor(monitor, [:flush])
    end
  end

  @doc false
  # Makes `pid` the owner of a socket that the caller owns.
  @spec give(socket(), pid()) :: :ok | {:error, term()}
  def give(socket, pid), do: transport(socket).controlling_process(socket, pid)

  @doc false
  # Which side does the TLS of the socket: the native one, OTP's `:ssl`, or nil for plain TCP.
  @spec tls(socket()) :: nil | :native | :otp
  def tls(%WebSocket{socket: socket}), do: tls(socket)

  def tls(socket) do
    case Transport.of(socket) do
      :gen_tcp -> nil
      :ssl -> :otp
      TlsSocket -> :native
    end
  end

  defp transport(%WebSocket{}), do: WebSocket
  defp transport(socket), do: Transport.of(socket)

  defp socket_options(options, address) do
    sizes = [
      buffer: options.buffer || if(options.secure, do: @tls_buffer),
      recbuf: options.receive_buffer,
      sndbuf: options.send_buffer
    ]

    nagle(address) ++
      [:binary, active: false, packet: :raw, send_timeout: options.send_timeout] ++
      Enum.reject(sizes, &match?({_name, nil}, &1))
  end

  # With Nagle's algorithm, small frames such as acknowledgements and heart-beats would be delayed.
  defp nagle({:local, _path}), do: []
  defp nagle(_host), do: [nodelay: true]
end
