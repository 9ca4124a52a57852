defmodule Barytherium.Network.Receiver do
  @moduledoc """
  Moves frames from an open socket to a listener.

  Reading, parsing and delivering are native. A connection that has little to read is read on the
  scheduler of its own process; a flood is read in slices on dirty I/O threads. An idle connection
  holds no thread: its process waits for a message. That process does nothing but what the native
  side says is next.

  ## Messages

  Frames are cast to `listener_pid`:

      {:barytherium, :frames, {[%Barytherium.Frame{}, ...], sender_pid}}

  The list is never empty, and in the order of the wire. The first frame of a connection has to
  be CONNECTED. It comes alone in its list, and `network_pid` is then called with
  `{:connected_frame, frame}`, which has to reply `{hb_send, hb_recv}`, the agreed heart-beats in
  milliseconds. An ERROR as first frame is delivered, and then the connection ends with `:closed`,
  whether or not the peer closes it. The log and `Barytherium.Telemetry` say that it was refused.

  The end is cast to `network_pid`, once, when everything that came before it has arrived in the
  listener's mailbox:

      {:barytherium, :disconnect, reason}

    * `:closed` - the peer closed or reset the connection, or this side closed the socket, or the
      listener is gone;
    * `:timeout` - no CONNECTED within 5 s, or nothing at all for twice the agreed heart-beat;
    * `:parse_error` - the peer does not speak STOMP, see `Barytherium.ParseError`;
    * `:emfile` - there are no descriptors left, or the VM cannot poll one as high as this;
    * a POSIX atom such as `:etimedout`, where reading failed with it; for a reset `:econnreset`,
      on a socket with the option `show_econnreset`.

  The socket is closed then.

  ## Back-pressure

  When the listener is a process of this node and its mailbox is too long (the option
  `high_water_mark` of `Barytherium.Network.start_link/4`), the loop stops reading until it has
  become shorter: the peer then feels TCP's window. While nothing is read, silence is no time-out.
  All connections to one listener share its mailbox, and go on in turn. What goes to a listener on
  another node is held up by the distribution's own buffer.
  """
  use GenServer, restart: :temporary

  require Logger

  alias Barytherium.{Connection, Frame, Native, ParseError, Telemetry}
  alias Barytherium.Network.{Options, Parser, Socket}

  # The longest time that a timer runs here: 49 days. A server may say more.
  @longest_wait 0xFFFF_FFFF

  # A TLS socket is waited for in `:ssl.recv/3`, where nothing else is heard. So it is left after
  # so many milliseconds, to see whether the listener still lives.
  @longest_tls_wait 5_000

  # How long the end of a connection waits for its last frames to arrive, in milliseconds. A
  # listener that takes longer is not able to look at any message.
  @longest_arrival 1_000

  # What lives in the process is little and does not change. Collected by generations, as is the
  # default, an idle connection's heap is three times as large after some heart-beats.
  @spawn_options [spawn_opt: [fullsweep_after: 0]]

  @typedoc """
  Where the loop starts.

    * `:parse_state` - where parsing starts (`Barytherium.Frame.parse_state/1`);
    * `:hb_recv` - `nil` before CONNECTED, `0` for no heart-beats, else milliseconds;
    * `:options` - the receiving ones of `Barytherium.Network.start_link/4`;
    * `:stats` - where to count, for `Barytherium.Network.stats/1`.
  """
  @type state :: %{
          required(:socket) => Connection.socket(),
          required(:listener_pid) => pid() | atom() | {atom(), node()},
          required(:network_pid) => GenServer.server(),
          required(:sender_pid) => pid(),
          optional(:parse_state) => Frame.parse_state(),
          optional(:hb_recv) => nil | non_neg_integer(),
          optional(:options) => keyword(),
          optional(:stats) => reference()
        }

  @doc """
  Starts the loop on an open socket, in a linked process. See `loop/1`.
  """
  @spec start_link(Connection.socket(), pid(), pid(), pid(), keyword()) :: {:ok, pid()}
  def start_link(socket, listener_pid, network_pid, sender_pid, opts \\ []) do
    start_loop(%{
      socket: socket,
      listener_pid: listener_pid,
      network_pid: network_pid,
      sender_pid: sender_pid,
      options: opts
    })
  end

  @doc false
  # The same with all that `loop/1` takes; and with `:greeting`, which is cast to the listener
  # before anything else.
  @spec start_loop(map()) :: {:ok, pid()}
  def start_loop(state), do: GenServer.start_link(__MODULE__, prepare(state), @spawn_options)

  @doc """
  Receives until the connection ends, and returns then.

  The loop runs in a process of its own, which ends with the caller: messages that are waiting for
  the caller are neither looked at nor joined by others.

  Raises `ArgumentError` if the socket is not passive and raw.
  """
  @spec loop(state()) :: :ok
  def loop(state) do
    state = prepare(state)
    # Its listener takes nothing before it has returned, if that is the caller.
    own_listener = state.listener_pid == self()
    state = Map.merge(state, %{caller: self(), own_listener: own_listener})
    {:ok, receiver} = GenServer.start(__MODULE__, state, @spawn_options)
    monitor = Process.monitor(receiver)

    receive do
      {:DOWN, ^monitor, :process, ^receiver, :normal} -> :ok
      # It may have ended before it was monitored.
      {:DOWN, ^monitor, :process, ^receiver, :noproc} -> :ok
      {:DOWN, ^monitor, :process, ^receiver, reason} -> exit(reason)
    end
  end

  @doc "A child that starts with these arguments of `start_link/5`, as a tuple or a list."
  @spec child_spec(tuple() | list()) :: Supervisor.child_spec()
  def child_spec(args) do
    args = if is_tuple(args), do: Tuple.to_list(args), else: args
    %{super([]) | start: {__MODULE__, :start_link, args}}
  end

  # In the caller, whose mistakes these would be.
  defp prepare(state) do
    Socket.check!(state.socket)
    check_hb_recv!(Map.get(state, :hb_recv))
    {options, _transport} = state |> Map.get(:options, []) |> Options.split()

    state
    |> Map.merge(%{options: options, listener_pid: resolve(state.listener_pid)})
    |> Map.put_new(:hb_recv, nil)
    |> Map.put_new_lazy(:stats, &Native.new_stats/0)
    |> Map.put(:parse_state, parse_state(state, options))
    |> Map.put(:own_listener, false)
  end

  defp check_hb_recv!(nil), do: :ok
  defp check_hb_recv!(time) when is_integer(time) and time in 0..@longest_wait, do: :ok

  defp check_hb_recv!(other) do
    raise ArgumentError, "hb_recv is neither nil nor milliseconds from 0 on: #{inspect(other)}"
  end

  # A name of this node is the process that has it now: its mailbox can be asked for its length.
  defp resolve(name) when is_atom(name), do: Process.whereis(name) || name
  defp resolve({name, node}) when node == node(), do: resolve(name)
  defp resolve(pid) when is_pid(pid), do: pid

  defp resolve({name, node} = listener) when is_atom(name) and is_atom(node) do
    Node.alive?() ||
      raise ArgumentError, "the listener is on node #{node}, and this node is not distributed"

    listener
  end

  defp resolve(other), do: raise(ArgumentError, "the listener is no process: #{inspect(other)}")

  # A state that the caller parsed with has its own limits. Otherwise the stream starts here, and
  # no version is negotiated before CONNECTED.
  defp parse_state(%{parse_state: parse_state}, _options) when not is_nil(parse_state),
    do: Frame.check_parse_state!(parse_state)

  defp parse_state(_state, options), do: Frame.parse_state(nil, Options.limits(options))

  @impl true
  def init(state) do
    with {:ok, greeting} <- Map.fetch(state, :greeting),
         do: GenServer.cast(state.listener_pid, greeting)

    {:ok, state, {:continue, :open}}
  end

  @impl true
  def handle_continue(:open, %{socket: socket} = state) do
    listener = Process.monitor(state.listener_pid)
    caller = with pid when is_pid(pid) <- state[:caller], do: Process.monitor(pid)
    monitor = unless Connection.tls?(socket), do: Socket.monitor(socket)

    # Only what is needed from here on: an idle connection keeps it.
    loop = %{
      socket: socket,
      listener_pid: state.listener_pid,
      network_pid: state.network_pid,
      # Whether it is our own network that runs this loop.
      own_network: Map.has_key?(state, :greeting),
      # As its user called it, for the log.
      peer: state[:peer] || Socket.peer(socket),
      monitors: [listener, caller, monitor],
      parser: nil,
      next: :inline,
      # When the timer for the deadline goes off, in milliseconds; nil without one.
      timer: nil,
      # Since when nothing is read, because the listener is behind.
      paused: nil
    }

    if monitor, do: open_tcp(state, loop), else: open_tls(state, loop)
  end

  defp open_tcp(%{socket: socket} = state, loop) do
    with {:ok, bytes} <- Socket.leftover(socket),
         {:ok, descriptor} <- Socket.descriptor(socket),
         {:ok, parser} <- Parser.open(descriptor, bytes, state) do
      loop = %{loop | parser: parser}
      # Meanwhile it may have been closed, and its number given to another socket.
      if Socket.descriptor(socket) == {:ok, descriptor} do
        Parser.confirm(parser, socket)
        act(:yield, loop)
      else
        parser |> Parser.disconnect(:closed) |> act(loop)
      end
    else
      {:error, reason} when reason in [:einval, :ebadf] -> finish(:closed, loop)
      {:error, reason} -> finish(reason, loop)
    end
  end

  defp open_tls(state, loop) do
    case Parser.open(nil, "", state) do
      {:ok, parser} -> act(:yield, %{loop | parser: parser})
      {:error, reason} -> finish(reason, loop)
    end
  end

  @impl true
  # There is something to read.
  def handle_info({:select, _socket, reference, :ready_input}, %{paused: nil} = loop)
      when reference == loop.parser.reference,
      do: loop.parser |> Parser.receive_inline() |> act(loop)

  # This side has closed the socket, or the listener or the caller of `loop/1` has ended.
  def handle_info({:DOWN, monitor, _type, _object, _info}, %{monitors: [listener | _]} = loop) do
    cond do
      monitor == listener -> loop.parser |> Parser.disconnect(:no_listener) |> act(loop)
      monitor in loop.monitors -> loop.parser |> Parser.disconnect(:closed) |> act(loop)
      true -> ignore(loop)
    end
  end

  # The next turn.
  def handle_info(:timeout, %{paused: nil} = loop), do: read(loop.next, loop)

  # The peer is late only if the socket is empty. If it is not late, the native side says how long
  # to wait from here.
  def handle_info(:deadline, %{paused: nil} = loop), do: read(:inline, %{loop | timer: nil})
  def handle_info(:deadline, loop), do: {:noreply, %{loop | timer: nil}}

  # Time to look at the listener's mailbox, or another connection's turn to do so has come here.
  def handle_info({:barytherium, :resume}, %{paused: paused} = loop) when paused != nil,
    do: resume(loop)

  def handle_info(_stray, loop), do: ignore(loop)

  @impl true
  def handle_cast(_stray, loop), do: ignore(loop)

  @impl true
  def handle_call(_stray, _from, loop), do: ignore(loop)

  # A message takes the place of the next turn. While the loop waits there is none.
  defp ignore(%{next: next, paused: nil} = loop) when next != :wait, do: {:noreply, loop, 0}
  defp ignore(loop), do: {:noreply, loop}

  @impl true
  def terminate(_reason, loop) do
    # After an exception only. Otherwise it is over.
    if loop[:parser], do: Parser.disconnect(loop.parser, :closed)
    # Our network may still have to write something, and closes the socket itself.
    unless loop[:own_network], do: Connection.close(loop.socket)
  end

  defp read(:slice, loop), do: loop.parser |> Parser.receive_slice() |> act(loop)
  defp read(:inline, loop), do: loop.parser |> Parser.receive_inline() |> act(loop)
  defp read(:feed, loop), do: loop.parser |> Parser.feed("") |> act(loop)

  defp read({:recv, timeout}, %{parser: parser, socket: socket} = loop) do
    case :ssl.recv(socket, 0, min(timeout, @longest_tls_wait)) do
      {:ok, bytes} -> parser |> Parser.feed(IO.iodata_to_binary(bytes)) |> act(loop)
      {:error, :timeout} -> read(:feed, loop)
      {:error, reason} -> parser |> Parser.disconnect(Connection.reason(reason)) |> act(loop)
    end
  end

  # With a timeout of 0 every message that is waiting is handled before the next turn.
  defp act({:wait, timeout}, %{monitors: [_listener, _caller, nil]} = loop),
    do: {:noreply, %{loop | next: {:recv, timeout}}, 0}

  defp act({:wait, timeout}, loop), do: {:noreply, set_timer(timeout, %{loop | next: :wait})}

  defp act(turn, %{monitors: [_listener, _caller, nil]} = loop) when turn in [:again, :yield],
    do: {:noreply, %{loop | next: :feed}, 0}

  defp act(:again, loop), do: {:noreply, %{loop | next: :slice}, 0}

  defp act(:yield, loop) do
    :erlang.yield()
    {:noreply, %{loop | next: :inline}, 0}
  end

  defp act(:full, loop), do: resume(loop)

  defp act({:connected_frame, frame}, loop) do
    {_hb_send, hb_recv} = GenServer.call(loop.network_pid, {:connected_frame, frame}, :infinity)
    Parser.agree(loop.parser, hb_recv)
    # Many connections are idle from here on, and would keep what it took to get here.
    :erlang.garbage_collect()
    act(:yield, loop)
  end

  defp act({:relay, casts, step}, loop) do
    Enum.each(casts, fn {listener, message} -> GenServer.cast(listener, message) end)
    act(step, loop)
  end

  # Our network knows that its callback process has ended, and what is still to be done then.
  defp act({:stop, :no_listener, nil}, %{own_network: true} = loop),
    do: {:stop, :normal, %{loop | parser: nil}}

  defp act({:stop, :no_listener, nil}, loop), do: finish(:closed, loop)

  defp act({:stop, reason, failure}, loop) do
    log(failure, loop)
    finish(reason, loop)
  end

  # The listener may be too far behind.
  defp resume(loop), do: loop.parser |> Parser.resume() |> pause_or_go_on(loop)

  defp pause_or_go_on(:look, loop) do
    case Process.info(loop.listener_pid, :message_queue_len) do
      {:message_queue_len, queued} -> loop.parser |> Parser.looked(queued) |> pause_or_go_on(loop)
      nil -> loop.parser |> Parser.disconnect(:no_listener) |> act(loop)
    end
  end

  defp pause_or_go_on({:pause, timeout}, loop) do
    if timeout != :infinity, do: Process.send_after(self(), {:barytherium, :resume}, timeout)
    {:noreply, %{loop | paused: loop.paused || System.monotonic_time()}}
  end

  defp pause_or_go_on(step, %{paused: nil} = loop), do: act(step, loop)

  defp pause_or_go_on(step, loop) do
    Telemetry.pause(loop, loop.paused)
    act(step, %{loop | paused: nil})
  end

  defp finish(reason, loop) do
    tell_network({:barytherium, :disconnect, reason}, loop)
    {:stop, :normal, %{loop | parser: nil}}
  end

  # The network's message to the listener must not arrive before our last frames. Messages of
  # different senders may do so, if the listener has `message_queue_data: :off_heap`. So we wait for
  # its answer to a signal, which comes after what we have sent.
  defp tell_network(message, %{listener_pid: listener, network_pid: network}) do
    if is_pid(listener) and node(listener) == node() do
      {teller, monitor} = spawn_monitor(fn -> tell_after_arrival(network, message) end)
      Process.info(listener, :message_queue_len)
      send(teller, :arrived)
      receive do: ({:DOWN, ^monitor, :process, ^teller, _reason} -> :ok)
    else
      GenServer.cast(network, message)
    end
  end

  defp tell_after_arrival(network, message) do
    receive do
      :arrived -> :ok
    after
      @longest_arrival -> :ok
    end

    GenServer.cast(network, message)
  end

  # A timer and not a timeout, which every message would start anew. Whatever is read moves the
  # deadline on; a timer that goes off before it is set again then.
  defp set_timer(:infinity, loop), do: loop

  defp set_timer(timeout, loop) do
    at = System.monotonic_time(:millisecond) + timeout

    if loop.timer && loop.timer <= at do
      loop
    else
      Process.send_after(self(), :deadline, min(timeout, @longest_wait))
      %{loop | timer: at}
    end
  end

  defp log(nil, _loop), do: :ok

  defp log(:panic, _loop),
    do: Logger.error("Barytherium ended a connection because its native code panicked")

  defp log({:refused, message}, loop) do
    Logger.error("#{peer(loop)} refused the connection: #{inspect(message)}")
    Telemetry.refused(loop, message)
  end

  defp log(failure, loop) do
    error = ParseError.from_native(failure)
    message = "Barytherium ended the connection to #{peer(loop)}: " <> Exception.message(error)
    Logger.error(message, barytherium_parse_error: error)
  end

  defp peer(%{peer: {host, port}}), do: "#{host(host)}:#{port}"
  defp peer(%{peer: text}), do: text

  defp host(host) when is_binary(host), do: host
  defp host(host) when is_list(host) or is_atom(host), do: to_string(host)
  defp host({:local, path}), do: to_string(path)
  defp host(address), do: address |> :inet.ntoa() |> to_string()
end
