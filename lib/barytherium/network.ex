defmodule Barytherium.Network do
  @moduledoc """
  A connection to a STOMP server. This process connects, and starts the sender and the receiver.

  ## Messages

  The callback process gets these messages as casts (`handle_cast/2` in a GenServer):

    * `{:barytherium, :connect, {:ok, sender_pid}}` - the connection is open. Write the CONNECT frame
      now, with `Barytherium.Network.Sender.write/2`;
    * `{:barytherium, :connect, {:error, reason}}` - connecting failed: `:econnrefused`,
      `:nxdomain`, ..., see `Barytherium.Connection.connect/3`;
    * `{:barytherium, :frames, {frames, sender_pid}}` - frames from the server, see
      `Barytherium.Network.Receiver`;
    * `{:barytherium, :disconnect, reason}` - the connection has ended. This is the last message. It
      comes exactly once after a successful connect, unless this process is stopped before.

  The heart-beat intervals follow from the CONNECT and CONNECTED frames (STOMP 1.2,
  "Heart-beating"). From CONNECTED on, heart-beats are sent and the server's are checked.

  ## Endings

  After a disconnect the process stays idle until it is stopped or the callback process ends.

  If either happens while it is connected, it first sends everything that was written, and then a
  DISCONNECT. Sending takes at most `send_timeout`, and at most 10 s. `close/2` does the same and also
  waits for the broker's answer.
  """
  # Milliseconds that sending may take when the process stops.
  @stop_timeout 10_000

  use GenServer, restart: :temporary, shutdown: @stop_timeout + 1_000

  require Logger

  alias Barytherium.{Connection, Frame, Native, Schema, Secret, Telemetry}
  alias Barytherium.Network.{Connector, Ending, Options, Receiver, Sender, WriteCounters}

  @longest_wait Schema.longest_wait()

  @typedoc "An option for the socket's buffers. The name is from Barytherium 0.7."
  @type network_buffer_option ::
          {:buffer | :receive_buffer | :send_buffer, pos_integer()}

  @doc """
  Starts a process that connects to `host` and `port`. It returns at once.

  `callback_pid` is the callback process, a pid or a registered name. It gets
  `{:barytherium, :connect, result}` when connecting has ended. `host` is a charlist, a string, an IP
  address or `{:local, path}`.

  ## Options

  #{Options.docs()}

  Options of `:gen_tcp.connect/3` and, with `secure: true`, of `:ssl.connect/3` are passed on:
  `:verify`, `:cacertfile`, `:inet6` and so on. See `Barytherium.Connection.connect/3`.

  Raises `ArgumentError` for invalid arguments and options.
  """
  @spec start_link(pid() | atom(), Connection.host(), :inet.port_number(), [Connection.option()]) ::
          GenServer.on_start()
  def start_link(callback_pid, host, port, opts \\ []) do
    # A mistake in the arguments raises in the caller.
    init = %{callback_handler: callback_pid, host: host, port: port, opts: opts}
    {init, _options} = check!(init)
    start(init)
  end

  # A parent that ends would make a GenServer end with the same reason, and log that as a crash of its own. So
  # this one has no parent, but a link.
  defp start(init), do: GenServer.start(__MODULE__, Map.put(init, :parent, self()))

  @doc false
  # The same, with a table of routes (`Barytherium.Native.new_routes/0`): the messages of a subscription
  # that has a route go to its process.
  @spec start_link(pid(), Connection.host(), :inet.port_number(), [term()], Native.routes()) ::
          GenServer.on_start()
  def start_link(callback_pid, host, port, opts, routes) do
    init = %{callback_handler: callback_pid, host: host, port: port, opts: opts, routes: routes}
    start(init)
  end

  @doc false
  # Sends `message` to `pid`, behind all frames for it that were read before this request.
  @spec fence(pid(), pid(), term()) :: :ok
  def fence(network, pid, message), do: GenServer.cast(network, {:fence, pid, message})

  @doc """
  A child specification. `args` are the arguments of `start_link/4`, in a tuple or a list.
  """
  @spec child_spec(tuple() | list()) :: Supervisor.child_spec()
  def child_spec(args) do
    args = if is_tuple(args), do: Tuple.to_list(args), else: args
    # A supervisor's reports show the arguments, among which may be a key or a password.
    %{super([]) | start: {__MODULE__, :start_child, [Secret.new(args)]}}
  end

  @doc false
  @spec start_child(Secret.t(list())) :: GenServer.on_start()
  def start_child(args), do: apply(__MODULE__, :start_link, Secret.reveal(args))

  defp check!(%{callback_handler: callback, host: host, port: port, opts: opts} = init) do
    options = Options.check!(opts)
    Connection.check_address!(host, port)
    {%{init | callback_handler: callback!(callback)}, options}
  end

  defp callback!(pid) when is_pid(pid), do: pid

  defp callback!(name) when is_atom(name) and name != nil do
    Process.whereis(name) ||
      raise ArgumentError, "no process is registered as #{inspect(name)}, the callback process"
  end

  defp callback!({name, node}) when is_atom(name) and node == node(), do: callback!(name)

  defp callback!(other),
    do: raise(ArgumentError, "the callback process is not a pid: #{inspect(other)}")

  @doc """
  Closes the connection in an orderly way.

  Sends everything that was written, then a DISCONNECT with a receipt (STOMP 1.2, "DISCONNECT"), and
  waits for the receipt, or until the broker has closed the connection. All of this may take `timeout`
  milliseconds. Writes of others that wait for room get `{:error, :closed}`.

  Returns `:ok` then, or if there was no connection, and otherwise `{:error, :timeout}`. The socket is closed in
  either case. If there was a connection, the callback
  process gets `{:barytherium, :disconnect, :closed}`. An attempt to connect is given up without a
  message. The network process continues until it is stopped.
  """
  @spec close(GenServer.server(), timeout()) :: :ok | {:error, :timeout}
  def close(network, timeout \\ 5_000)
      when timeout == :infinity or (is_integer(timeout) and timeout in 0..@longest_wait),
      do: GenServer.call(network, {:close, timeout}, :infinity)

  # How long a receiver may take to end after its socket was closed, in milliseconds. It may be in the
  # middle of a slice, or of `:ssl.recv/3`.
  @receiver_timeout 5_000

  @typedoc """
  The counters of a connection since its start, and how it is secured:

    * `:frames` and `:bytes` - frames and bytes received;
    * `:slices` - calls of the native receive loop;
    * `:waits` - times that the loop found nothing to read;
    * `:pauses` - times that reading stopped because the callback process was behind;
    * `:inflated` and `:not_inflated` - bodies that were inflated, and those that could not be; see the option
      `inflate`;
    * `:parse_time` - microseconds spent on decoding, inflating and making terms;
    * `:frames_written` - frames that were handed to the socket;
    * `:bytes_waiting` - bytes of the frames that wait to be written, see the option
      `max_send_queue`;
    * `:tls` - who does the TLS: `:native`, `:otp` for `:ssl` of OTP, or `nil` for plain TCP, and
      before there is a connection;
    * `:last_activity` - the time of the last read, in milliseconds of `System.monotonic_time/1`, or
      `nil` if nothing has been read.
  """
  @type stats :: %{
          frames: non_neg_integer(),
          bytes: non_neg_integer(),
          slices: non_neg_integer(),
          waits: non_neg_integer(),
          pauses: non_neg_integer(),
          inflated: non_neg_integer(),
          not_inflated: non_neg_integer(),
          parse_time: non_neg_integer(),
          frames_written: non_neg_integer(),
          bytes_waiting: non_neg_integer(),
          tls: nil | :native | :otp,
          last_activity: nil | integer()
        }

  @doc "Returns the connection's counters. They are always on, and stay after a disconnect."
  @spec stats(GenServer.server()) :: stats()
  def stats(network), do: GenServer.call(network, :stats)

  @impl true
  def init(%{opts: opts} = init) do
    # With this, `terminate/2` also runs when a linked callback process ends. It sends what was
    # written.
    Process.flag(:trap_exit, true)
    # Users may also start this process with GenServer's functions.
    init = Map.put_new(init, :parent, nil)
    if init.parent, do: Process.link(init.parent)
    {init, options} = check!(init)
    Process.monitor(init.callback_handler)

    state =
      init
      # The options may hold a key or a password.
      |> Map.delete(:opts)
      |> Map.merge(%{
        is_connected: false,
        is_agreed: false,
        options: Options.receiving(opts),
        stop_timeout: stop_timeout(options.send_timeout),
        max_send_queue: options.max_send_queue,
        connector: nil,
        started: System.monotonic_time(),
        socket: nil,
        tls: nil,
        sender_pid: nil,
        receiver_pid: nil,
        # The receipt that `close/2` asks for.
        last_receipt: "barytherium-close-#{System.unique_integer([:positive])}",
        # Callers of `close/2`.
        closing: [],
        reason: nil,
        stats: Native.new_stats(),
        counters: WriteCounters.new()
      })

    connecting = Options.connecting(opts)
    connector = Connector.start_link(state.host, state.port, connecting, options.connect_timeout)
    {:ok, %{state | connector: connector}}
  end

  defp stop_timeout(:infinity), do: @stop_timeout
  defp stop_timeout(send_timeout), do: min(send_timeout, @stop_timeout)

  defp connected({:ok, socket}, state) do
    Telemetry.connect(state, state.started, :ok)
    peer = Connection.peer(state.host, state.port)
    limit = state.max_send_queue
    {:ok, sender_pid} = Sender.start_link(self(), socket, state.counters, limit, peer)
    state = %{state | socket: socket, sender_pid: sender_pid, is_connected: true}
    state = %{state | tls: Connection.tls(socket)}
    {:ok, receiver_pid} = state |> receiver_state(socket, sender_pid) |> Receiver.start_loop()
    {:noreply, %{state | receiver_pid: receiver_pid}}
  end

  defp connected({:error, reason}, state) do
    Telemetry.connect(state, state.started, reason)
    callback(state, {:connect, {:error, reason}})
    {:noreply, state, :hibernate}
  end

  defp receiver_state(state, socket, sender_pid) do
    %{
      last_receipt: state.last_receipt,
      routes: state[:routes],
      socket: socket,
      listener_pid: state.callback_handler,
      network_pid: self(),
      sender_pid: sender_pid,
      options: state.options,
      stats: state.stats,
      peer: {state.host, state.port},
      # The receiver sends this message. Only then is it certain to arrive before the frames.
      greeting: {:barytherium, :connect, {:ok, sender_pid}}
    }
  end

  @impl true
  def handle_call(:stats, _from, state), do: {:reply, read_stats(state), state}

  def handle_call({:close, _timeout}, _from, %{socket: nil} = state),
    do: {:reply, :ok, stop_connector(state)}

  def handle_call({:close, timeout}, from, state) do
    if state.closing == [], do: write_disconnect(state)
    if timeout != :infinity, do: Process.send_after(self(), {:close_timeout, from}, timeout)
    {:noreply, %{state | closing: [from | state.closing]}}
  end

  def handle_call({:connected_frame, %Frame{} = frame}, _from, state) do
    agreed = if state.socket, do: Sender.connected(state.sender_pid, frame), else: {0, 0}
    {:reply, agreed, %{state | is_agreed: true}, :hibernate}
  end

  def handle_call(_stray, _from, state), do: {:reply, {:error, :unknown_call}, state}

  # When the receipt arrives, or the socket ends, so does the receiver, which reports it here.
  defp write_disconnect(%{sender_pid: sender_pid, last_receipt: receipt} = state) do
    if Sender.disconnect(sender_pid, [{"receipt", receipt}]) == :not_connected,
      do: close_socket(state, &Connection.close/1)
  end

  # `:ssl` does not tell the owner of a socket that somebody else has closed it.
  defp close_socket(%{socket: socket, receiver_pid: receiver} = state, close) do
    close.(socket)
    if state.tls == :otp and receiver != nil, do: send(receiver, {:ssl_closed, socket})
  end

  @impl true
  # After a disconnect all frames have arrived.
  def handle_cast({:fence, pid, message}, %{receiver_pid: receiver} = state) do
    if receiver,
      do: send(receiver, {:barytherium, :fence, pid, message}),
      else: send(pid, message)

    {:noreply, state}
  end

  def handle_cast({:barytherium, :disconnect, _reason}, %{socket: nil} = state),
    do: {:noreply, state, :hibernate}

  def handle_cast({:barytherium, :disconnect, reason}, state) do
    reason = state.reason || reason
    callback(state, {:disconnect, reason})
    Telemetry.disconnect(state, reason, read_stats(state))
    Enum.each(state.closing, &GenServer.reply(&1, :ok))
    # Nothing depends on it any more, whatever it ends with.
    if state.receiver_pid, do: Process.unlink(state.receiver_pid)
    Ending.hang_up(state)

    {:noreply,
     %{
       state
       | socket: nil,
         sender_pid: nil,
         receiver_pid: nil,
         is_connected: false,
         closing: []
     }, :hibernate}
  end

  # The peer has closed, but may have sent more before. The receiver reads that and then the end.
  def handle_cast({:barytherium, :send_failed, reason}, state)
      when reason in [:closed, :econnreset, :econnaborted, :epipe, :enotconn],
      do: {:noreply, state}

  # The peer does not read. When the socket is closed, the receiver delivers its last frames, reports
  # the end and ends.
  def handle_cast({:barytherium, :send_failed, reason}, %{socket: socket} = state) do
    if socket do
      close_socket(state, &Connection.abandon/1)
      Process.send_after(self(), :end_receiver, @receiver_timeout)
    end

    {:noreply, %{state | reason: reason}}
  end

  def handle_cast({:write, _frames, _cost}, state) do
    Logger.error(
      "Sender.write/2 was called with the network process. The sender is the pid in " <>
        "{:barytherium, :connect, {:ok, sender_pid}}"
    )

    {:noreply, state}
  end

  def handle_cast(_stray, state), do: {:noreply, state}

  @impl true
  def handle_info({:connector, pid, result}, %{connector: pid} = state),
    do: connected(result, %{state | connector: nil})

  def handle_info({:connect_timeout, pid}, %{connector: pid} = state),
    do: connected({:error, :timeout}, stop_connector(state))

  def handle_info({:DOWN, _monitor, :process, pid, _reason}, %{callback_handler: pid} = state),
    do: {:stop, :shutdown, state}

  def handle_info({:close_timeout, from}, %{closing: closing} = state) do
    if from in closing do
      GenServer.reply(from, {:error, :timeout})
      close_socket(state, &Connection.abandon/1)
      Process.send_after(self(), :end_receiver, @receiver_timeout)
    end

    {:noreply, %{state | closing: List.delete(closing, from)}}
  end

  def handle_info(:end_receiver, %{receiver_pid: receiver} = state) when receiver != nil do
    Process.unlink(receiver)
    Process.exit(receiver, :kill)
    handle_cast({:barytherium, :disconnect, state.reason || :closed}, state)
  end

  # The sender and the receiver end before the connection only if they crash or are stopped.
  def handle_info({:EXIT, pid, _reason}, %{sender_pid: pid} = state) when pid != nil,
    do: handle_cast({:barytherium, :disconnect, :closed}, state)

  def handle_info({:EXIT, pid, reason}, %{receiver_pid: pid} = state)
      when pid != nil and reason != :normal,
      do: handle_cast({:barytherium, :disconnect, :closed}, state)

  # The receiver ends like this when the callback process has ended. The `:DOWN` message of that is
  # about to arrive.
  def handle_info({:EXIT, pid, :normal}, %{receiver_pid: pid} = state) when pid != nil,
    do: {:noreply, %{state | receiver_pid: nil}}

  def handle_info({:EXIT, pid, _reason}, %{connector: pid} = state) when pid != nil,
    do: connected({:error, :closed}, %{state | connector: nil})

  # The attempt to connect was already given up.
  def handle_info({:connector, _pid, {:ok, socket}}, state) do
    Connection.abandon(socket)
    {:noreply, state}
  end

  # Timers that are no longer needed, and exits of processes that have done their work.
  def handle_info({:connect_timeout, _connector}, state), do: {:noreply, state}
  def handle_info(:end_receiver, state), do: {:noreply, state}
  # It logs its crash itself.
  def handle_info({:EXIT, pid, _reason}, %{parent: pid} = state), do: {:stop, :shutdown, state}
  def handle_info({:EXIT, _pid, :normal}, state), do: {:noreply, state}
  def handle_info({:EXIT, _pid, reason}, state), do: {:stop, reason, state}

  def handle_info(_stray, state) do
    Logger.debug("Barytherium ignores a message to a network process")
    {:noreply, state}
  end

  @impl true
  # Sends what was written and a DISCONNECT before it closes the socket.
  def terminate(_reason, %{socket: nil} = state), do: stop_connector(state)

  def terminate(_reason, state), do: Ending.finish(state)

  defp stop_connector(state) do
    Connector.stop(state.connector)
    %{state | connector: nil}
  end

  defp read_stats(%{stats: stats, counters: counters} = state) do
    {frames_written, bytes_waiting} = WriteCounters.read(counters)
    {idle, received} = stats |> Native.stats() |> Map.pop!(:idle)

    Map.merge(received, %{
      frames_written: frames_written,
      bytes_waiting: bytes_waiting,
      tls: state.tls,
      last_activity: idle && System.monotonic_time(:millisecond) - idle
    })
  end

  defp callback(%{callback_handler: pid}, {event, value}),
    do: GenServer.cast(pid, {:barytherium, event, value})
end
