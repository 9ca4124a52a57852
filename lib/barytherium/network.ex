defmodule Barytherium.Network do
  @moduledoc """
  A connection to a STOMP server: connects, and coordinates the sender and the receiver.

  ## Messages

  Everything is cast to the callback process (`handle_cast/2` in a GenServer):

    * `{:barytherium, :connect, {:ok, sender_pid}}` - connected; the CONNECT frame is to be
      written now, with `Barytherium.Network.Sender.write/2`;
    * `{:barytherium, :connect, {:error, reason}}` - not connected: `:econnrefused`,
      `:nxdomain`, ...;
    * `{:barytherium, :frames, {frames, sender_pid}}` - frames, see
      `Barytherium.Network.Receiver`;
    * `{:barytherium, :disconnect, reason}` - the connection is over. Exactly once after a
      successful connect, whatever sender and receiver both report, and the last message.

  The heart-beats are agreed on between the CONNECT frame that was written and the CONNECTED frame
  that came (STOMP 1.2, "Heart-beating"), and both kept and watched from there.

  ## Endings

  The process goes on after a disconnect, without doing anything, until it is stopped, or the
  callback process ends. While it is connected, either of these sends first what was written, and then
  a DISCONNECT. That takes no longer than the option `send_timeout`, nor than 10 s. `close/2` does
  the same and waits for the broker's answer.
  """
  # Milliseconds that stopping may take: what was written is sent first.
  @stop_timeout 10_000

  use GenServer, restart: :temporary, shutdown: @stop_timeout + 1_000

  require Logger

  alias Barytherium.{Connection, Frame, Native, Telemetry}
  alias Barytherium.Network.{Options, Receiver, Sender}

  @typedoc "An option about the socket's buffers, as Barytherium 0.7 called it."
  @type network_buffer_option ::
          {:buffer | :receive_buffer | :send_buffer, pos_integer()}

  @doc """
  Connects to `host` and `port`, at once and asynchronously, on behalf of `callback_pid`, which may
  also be a registered name.

  `host` is a charlist, a string, an IP address or `{:local, path}`.

  ## Options

  #{Options.docs()}

  Those of `:gen_tcp.connect/3` and, with `secure: true`, `:ssl.connect/3` are passed on: `:verify`,
  `:cacertfile`, `:inet6` and so on. See `Barytherium.Connection.connect/3`.

  Raises `ArgumentError` for arguments and options that cannot be meant.
  """
  @spec start_link(pid() | atom(), Connection.host(), :inet.port_number(), [Connection.option()]) ::
          GenServer.on_start()
  def start_link(callback_pid, host, port, opts \\ []) do
    # In the caller: a mistake in the arguments is its own.
    init = %{callback_handler: callback_pid, host: host, port: port, opts: opts}
    {init, _options} = check!(init)
    GenServer.start_link(__MODULE__, init)
  end

  @doc """
  A child that starts with these arguments of `start_link/4`, as a tuple or a list.
  """
  @spec child_spec(tuple() | list()) :: Supervisor.child_spec()
  def child_spec(args) do
    args = if is_tuple(args), do: Tuple.to_list(args), else: args
    %{super([]) | start: {__MODULE__, :start_link, args}}
  end

  defp check!(%{callback_handler: callback, host: host, port: port, opts: opts} = init) do
    {options, _transport} = Options.split(opts)
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
  Ends the connection in an orderly way: what was written is sent, then DISCONNECT with a receipt
  (STOMP 1.2, "DISCONNECT"), and then the broker has `timeout` milliseconds to answer and close.

  `:ok` when it has, or when there was no connection; otherwise `{:error, :timeout}`. The socket is
  closed in any case, and the callback process gets its `{:barytherium, :disconnect, :closed}`. The
  network process goes on until it is stopped.
  """
  @spec close(GenServer.server(), timeout()) :: :ok | {:error, :timeout}
  def close(network, timeout \\ 5_000)
      when timeout == :infinity or (is_integer(timeout) and timeout in 0..0xFFFF_FFFF),
      do: GenServer.call(network, {:close, timeout}, :infinity)

  # Milliseconds that the peer has to read what was written, and to close.
  @longest_farewell 1_000

  # Milliseconds between the delivery of CONNECTED and the call with it, at most.
  @longest_agreement 100

  # Milliseconds that a receiver may take to end when its socket has been closed: it may be in the
  # middle of a slice, or of `:ssl.recv/3`.
  @receiver_timeout 5_000

  @typedoc """
  What a connection has received so far:

    * `:frames` and `:octets` - what came, in all;
    * `:slices` - calls of the native loop, `:waits` - times that it found nothing to read;
    * `:pauses` - times that reading was stopped because the callback process was behind;
    * `:parse_time` - microseconds spent on decoding and on making terms;
    * `:frames_written` - frames that were handed to the socket, and `:bytes_waiting` - bytes of those
      that wait for it, see the option `max_send_queue`;
    * `:last_activity` - when something came for the last time, in milliseconds of
      `System.monotonic_time/1`; `nil` if nothing has.
  """
  @type stats :: %{
          frames: non_neg_integer(),
          octets: non_neg_integer(),
          slices: non_neg_integer(),
          waits: non_neg_integer(),
          pauses: non_neg_integer(),
          parse_time: non_neg_integer(),
          frames_written: non_neg_integer(),
          bytes_waiting: non_neg_integer(),
          last_activity: nil | integer()
        }

  @doc "Counters of the connection, which are always on. They stay after a disconnect."
  @spec stats(GenServer.server()) :: stats()
  def stats(network), do: GenServer.call(network, :stats)

  @impl true
  def init(%{opts: opts} = init) do
    # What was written is to be sent also when the callback process takes this one along.
    Process.flag(:trap_exit, true)
    {init, options} = check!(init)
    Process.monitor(init.callback_handler)

    state =
      init
      # They may hold a key or a password.
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
        sender_pid: nil,
        receiver_pid: nil,
        # Who waits for the end of the connection.
        closing: [],
        reason: nil,
        stats: Native.new_stats(),
        counters: Sender.new_counters()
      })

    {:ok, %{state | connector: start_connector(state, opts, options.connect_timeout)}}
  end

  defp stop_timeout(:infinity), do: @stop_timeout
  defp stop_timeout(send_timeout), do: min(send_timeout, @stop_timeout)

  # Connecting takes its time, in which this process answers.
  defp start_connector(%{host: host, port: port}, opts, timeout) do
    network = self()
    connector = spawn_link(fn -> connect(network, host, port, opts) end)

    if timeout != :infinity,
      do: Process.send_after(self(), {:connect_timeout, connector}, timeout)

    connector
  end

  defp connect(network, host, port, opts) do
    result = Connection.connect(host, port, opts)
    with {:ok, socket} <- result, do: Connection.give(socket, network)
    send(network, {:connector, self(), result})
  catch
    # What `:gen_tcp` and `:ssl` make of values that they cannot use. These may be secret.
    _kind, _reason ->
      names = Enum.map(opts, &if(is_tuple(&1), do: elem(&1, 0), else: &1))
      Logger.error("one of the options cannot be used as it is: #{inspect(names)}")
      send(network, {:connector, self(), {:error, :options}})
  end

  defp connected({:ok, socket}, state) do
    Telemetry.connect(state, state.started, :ok)
    limit = state.max_send_queue
    {:ok, sender_pid} = Sender.start_link(self(), socket, state.counters, limit)
    state = %{state | socket: socket, sender_pid: sender_pid, is_connected: true}
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
      socket: socket,
      listener_pid: state.callback_handler,
      network_pid: self(),
      sender_pid: sender_pid,
      options: state.options,
      stats: state.stats,
      peer: {state.host, state.port},
      # From the process that the frames come from: only so does it arrive before them for certain.
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

  # The receiver ends by the socket's end.
  defp write_disconnect(%{sender_pid: sender_pid, socket: socket}) do
    id = "close-#{System.unique_integer([:positive])}"

    if Sender.disconnect(sender_pid, [{"receipt", id}]) == :not_connected,
      do: Connection.close(socket)
  end

  @impl true
  def handle_cast({:barytherium, :disconnect, _reason}, %{socket: nil} = state),
    do: {:noreply, state, :hibernate}

  def handle_cast({:barytherium, :disconnect, reason}, state) do
    reason = state.reason || reason
    callback(state, {:disconnect, reason})
    Telemetry.disconnect(state, reason, read_stats(state))
    Enum.each(state.closing, &GenServer.reply(&1, :ok))
    # The receiver ends by the socket's end, if not for a reason of its own.
    Connection.close(state.socket)
    stop_sender(state.sender_pid)

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

  # The peer may have sent more before it closed: the receiver reads that, and finds the end.
  def handle_cast({:barytherium, :send_failed, reason}, state)
      when reason in [:closed, :econnreset, :econnaborted, :epipe, :enotconn],
      do: {:noreply, state}

  # The peer is there and does not read. The receiver ends with the socket, and reports that when
  # it has delivered its last frame.
  def handle_cast({:barytherium, :send_failed, reason}, %{socket: socket} = state) do
    if socket do
      Connection.abandon(socket)
      Process.send_after(self(), :end_receiver, @receiver_timeout)
    end

    {:noreply, %{state | reason: reason}}
  end

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
      Connection.abandon(state.socket)
      Process.send_after(self(), :end_receiver, @receiver_timeout)
    end

    {:noreply, %{state | closing: List.delete(closing, from)}}
  end

  def handle_info(:end_receiver, %{receiver_pid: receiver} = state) when receiver != nil do
    Process.unlink(receiver)
    Process.exit(receiver, :kill)
    handle_cast({:barytherium, :disconnect, state.reason || :closed}, state)
  end

  # Both do not end before the connection does, unless somebody ends them, or they crash.
  def handle_info({:EXIT, pid, _reason}, %{sender_pid: pid} = state) when pid != nil,
    do: handle_cast({:barytherium, :disconnect, :closed}, state)

  def handle_info({:EXIT, pid, reason}, %{receiver_pid: pid} = state)
      when pid != nil and reason != :normal,
      do: handle_cast({:barytherium, :disconnect, :closed}, state)

  # It has nobody to read for: the callback process has ended, which is about to be heard here.
  def handle_info({:EXIT, pid, :normal}, %{receiver_pid: pid} = state) when pid != nil,
    do: {:noreply, %{state | receiver_pid: nil}}

  def handle_info({:EXIT, pid, _reason}, %{connector: pid} = state) when pid != nil,
    do: connected({:error, :closed}, %{state | connector: nil})

  # From a connector that was given up.
  def handle_info({:connector, _pid, {:ok, socket}}, state) do
    Connection.abandon(socket)
    {:noreply, state}
  end

  # Of a connection that was made, or ended, in time; and of processes that have done their part.
  def handle_info({:connect_timeout, _connector}, state), do: {:noreply, state}
  def handle_info(:end_receiver, state), do: {:noreply, state}
  def handle_info({:EXIT, _pid, _reason}, state), do: {:noreply, state}

  def handle_info(_stray, state) do
    Logger.debug("Barytherium ignores a message to a network process")
    {:noreply, state}
  end

  @impl true
  # What was written is sent, and the broker told, before the socket is closed.
  def terminate(_reason, %{socket: nil} = state), do: stop_connector(state)

  def terminate(_reason, state) do
    unless state.is_agreed, do: await_agreement(state)

    case Sender.finish(state.sender_pid, [], state.stop_timeout) do
      :ok -> close_after_writing(state)
      {:error, _reason} -> Connection.abandon(state.socket)
    end
  end

  # The peer may not have read yet what was written, and it may still send. There is one reader at a
  # time: the receiver, until it has found the end or has nobody to read for, and then this process.
  defp close_after_writing(%{socket: socket, receiver_pid: receiver}) do
    Connection.shutdown(socket)
    if await_end(receiver), do: Connection.discard(socket, @longest_farewell)
    Connection.close(socket)
  end

  defp await_end(nil), do: true

  defp await_end(receiver) do
    receive do
      {:EXIT, ^receiver, _reason} -> true
    after
      @longest_farewell -> false
    end
  end

  # The callback process may have got CONNECTED, and written something, sooner than this process was
  # called with it. What was written waits for that.
  defp await_agreement(state) do
    receive do
      {:"$gen_call", from, {:connected_frame, frame}} ->
        GenServer.reply(from, Sender.connected(state.sender_pid, frame))
    after
      @longest_agreement -> :ok
    end
  end

  defp stop_connector(%{connector: nil} = state), do: state

  defp stop_connector(%{connector: pid} = state) do
    monitor = Process.monitor(pid)
    Process.unlink(pid)
    Process.exit(pid, :kill)
    receive do: ({:DOWN, ^monitor, :process, ^pid, _reason} -> :ok)

    # It may have connected at the last moment.
    receive do
      {:connector, ^pid, {:ok, socket}} -> Connection.abandon(socket)
      {:connector, ^pid, _error} -> :ok
    after
      0 -> :ok
    end

    %{state | connector: nil}
  end

  defp read_stats(%{stats: stats, counters: counters}) do
    {frames_written, bytes_waiting} = Sender.counts(counters)
    {frames, octets, slices, waits, pauses, parse_time, idle} = Native.stats(stats)

    %{
      frames: frames,
      octets: octets,
      slices: slices,
      waits: waits,
      pauses: pauses,
      parse_time: parse_time,
      frames_written: frames_written,
      bytes_waiting: bytes_waiting,
      last_activity: idle && System.monotonic_time(:millisecond) - idle
    }
  end

  defp stop_sender(sender_pid) do
    Process.unlink(sender_pid)
    Process.exit(sender_pid, :shutdown)
  end

  defp callback(%{callback_handler: pid}, {event, value}),
    do: GenServer.cast(pid, {:barytherium, event, value})
end
