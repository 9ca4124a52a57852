defmodule Barytherium.Network.Receiver do
  @moduledoc """
  Moves frames from an open socket to a listener.

  Reading, parsing and delivering are native and run on a dirty I/O scheduler, a slice at a time:
  a slice reads until the socket is dry and then waits for a message, so an idle connection holds
  no thread. The process that runs the loop only does what a slice says is next.

  ## Messages

  Frames are cast to `listener_pid`:

      {:barytherium, :frames, {[%Barytherium.Frame{}, ...], sender_pid}}

  The list is never empty, and in the order of the wire. The first frame of a connection has to
  be CONNECTED. It comes alone in its list, and `network_pid` is then called with
  `{:connected_frame, frame}`, which has to reply `{hb_send, hb_recv}`, the agreed heart-beats in
  milliseconds. An ERROR as first frame is delivered like any other, and the loop goes on until
  the peer closes.

  The end is cast to `network_pid`, once, after everything that came before it was delivered:

      {:barytherium, :disconnect, reason}

    * `:closed` - the peer closed or reset the connection, or this side closed the socket, or the
      listener is gone;
    * `:timeout` - no CONNECTED within 5 s, or nothing at all for twice the agreed heart-beat;
    * `:parse_error` - the peer does not speak STOMP, see `Barytherium.ParseError`;
    * a POSIX atom such as `:etimedout`, where reading failed with it; for a reset `:econnreset`,
      on a socket with the option `show_econnreset`.

  The socket is closed then.

  ## Back-pressure

  When the listener is a process of this node and its mailbox is too long (the option
  `high_water_mark` of `Barytherium.Network.start_link/4`), the loop stops reading until it has
  become shorter: the peer then feels TCP's window. While nothing is read, silence is no time-out.
  What goes to a listener on another node is held up by the distribution's own buffer.
  """

  require Logger

  alias Barytherium.{Connection, Frame, Native, ParseError, Telemetry}
  alias Barytherium.Network.{Options, Parser, Socket}

  # The longest time that a `receive` takes.
  @longest_wait 0xFFFF_FFFF

  # A TLS socket is waited for in `:ssl.recv/3`, where nothing else is heard: so often, in ms, it
  # is left to see whether the listener still lives.
  @longest_tls_wait 5_000

  # A mailbox does not tell when it has become shorter. It is looked at after so many milliseconds,
  # and if it has not then after twice as many, up to what a listener works off in one go.
  @shortest_pause 1
  @longest_pause 16

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
  Starts the loop on an open socket, as a linked task. See `loop/1`.
  """
  @spec start_link(Connection.socket(), pid(), pid(), pid(), keyword()) :: {:ok, pid()}
  def start_link(socket, listener_pid, network_pid, sender_pid, opts \\ []) do
    start_loop(%{
      socket: socket,
      listener_pid: listener_pid,
      network_pid: network_pid,
      sender_pid: sender_pid,
      hb_recv: nil,
      options: opts
    })
  end

  @doc false
  # The same with all that `loop/1` takes.
  @spec start_loop(state()) :: {:ok, pid()}
  def start_loop(state), do: Task.start_link(__MODULE__, :loop_in_task, [state])

  @doc false
  @spec loop_in_task(state()) :: :ok
  def loop_in_task(state) do
    # What lives here is little and does not change. Collected by generations, as is the default,
    # an idle connection's heap is three times as large after some heart-beats.
    Process.flag(:fullsweep_after, 0)
    loop(state)
  end

  @doc """
  Receives in the calling process until the connection ends. Messages that are waiting for the
  caller are left alone.

  Raises `ArgumentError` if the socket is not passive and raw.
  """
  @spec loop(state()) :: :ok
  def loop(%{socket: socket} = state) do
    Socket.check!(socket)
    {options, _transport} = state |> Map.get(:options, []) |> Options.split()
    listener = Process.monitor(state.listener_pid)

    state =
      state
      |> Map.put_new(:hb_recv, nil)
      |> Map.put_new_lazy(:stats, &Native.new_stats/0)
      |> Map.put(:options, options)
      |> Map.put(:parse_state, parse_state(state, options))
      |> Map.put(:listener, listener)

    try do
      if Connection.tls?(socket), do: loop_tls(state), else: loop_tcp(state)
    after
      Process.demonitor(listener, [:flush])
    end
  end

  # A state that the caller parsed with has its own limits. Otherwise the stream starts here, and
  # no version is negotiated before CONNECTED.
  defp parse_state(%{parse_state: parse_state}, _options) when not is_nil(parse_state),
    do: parse_state

  defp parse_state(_state, options),
    do: %{Frame.parse_state(version: nil) | limits: Options.limits(options)}

  defp loop_tcp(%{socket: socket} = state) do
    monitor = Socket.monitor(socket)

    try do
      with {:ok, bytes} <- Socket.leftover(socket),
           {:ok, descriptor} <- Socket.descriptor(socket),
           {:ok, parser} <- Parser.open(descriptor, bytes, state) do
        # Meanwhile it may have been closed, and its number given to another socket.
        if Socket.descriptor(socket) == {:ok, descriptor},
          do: Parser.confirm(parser),
          else: Parser.disconnect(parser, :closed)

        run(parser, Map.put(state, :monitor, monitor))
      else
        {:error, reason} -> refuse(state, reason)
      end
    after
      Socket.demonitor(socket, monitor)
    end
  end

  defp loop_tls(state) do
    {:ok, parser} = Parser.open(nil, "", state)
    run(parser, Map.put(state, :monitor, nil))
  end

  defp run(parser, %{socket: socket} = state) do
    # Only what is needed from here on: an idle connection keeps it.
    drive(:yield, parser, %{
      socket: socket,
      listener_pid: state.listener_pid,
      network_pid: state.network_pid,
      listener: state.listener,
      monitor: state.monitor
    })
  after
    # After an exception only; otherwise it is over, and this does nothing.
    Parser.disconnect(parser, :closed)
    Connection.close(socket)
    flush(parser.reference)
  end

  # There is no descriptor to read from: the socket was closed, or there are none left.
  defp refuse(state, reason) do
    reason = if reason in [:einval, :ebadf], do: :closed, else: reason
    GenServer.cast(state.network_pid, {:barytherium, :disconnect, reason})
    Connection.close(state.socket)
  end

  defp drive(:again, parser, state),
    do: (&Parser.receive_slice/1) |> next(parser, state) |> drive(parser, state)

  defp drive(:yield, parser, state) do
    :erlang.yield()
    (&Parser.receive_inline/1) |> next(parser, state) |> drive(parser, state)
  end

  defp drive({:wait, timeout}, parser, state),
    do: timeout |> min_wait() |> wait(parser, state) |> drive(parser, state)

  defp drive({:connected_frame, frame}, parser, state) do
    {_hb_send, hb_recv} = GenServer.call(state.network_pid, {:connected_frame, frame}, :infinity)

    Parser.agree(parser, hb_recv)
    # Many connections are idle from here on, and would keep what it took to get here.
    :erlang.garbage_collect()
    drive(:yield, parser, state)
  end

  defp drive({:relay, casts, step}, parser, state) do
    Enum.each(casts, fn {server, message} -> GenServer.cast(server, message) end)
    drive(step, parser, state)
  end

  defp drive({:stop, failure}, _parser, _state), do: log(failure)

  defp drive(:full, parser, state), do: parser |> resume(state) |> drive(parser, state)

  # There is more to do at once, unless the connection has been ended meanwhile.
  defp next(read, parser, state) do
    if ended?(state, 0), do: Parser.disconnect(parser, :closed), else: read(read, parser, state)
  end

  # With TLS only what is pending can be gone on with here.
  defp read(_read, parser, %{monitor: nil}), do: Parser.feed(parser, "")
  defp read(read, parser, _state), do: read.(parser)

  # Whether this side has closed the socket, or the listener has ended, within `timeout`.
  defp ended?(%{monitor: monitor, listener: listener}, timeout) do
    receive do
      {:DOWN, ^listener, :process, _pid, _reason} -> true
      {:DOWN, ^monitor, _type, _socket, _info} -> true
    after
      timeout -> false
    end
  end

  # The listener may be behind. If it is, it is left alone for a while.
  defp resume(parser, state) do
    case look(parser, state) do
      :full -> pause(@shortest_pause, System.monotonic_time(), parser, state)
      step -> step
    end
  end

  defp look(parser, state) do
    case Process.info(state.listener_pid, :message_queue_len) do
      {:message_queue_len, queued} -> Parser.resume(parser, queued)
      nil -> Parser.disconnect(parser, :closed)
    end
  end

  defp pause(time, started, parser, state) do
    case not ended?(state, time) and look(parser, state) do
      false ->
        Parser.disconnect(parser, :closed)

      :full ->
        pause(min(time * 2, @longest_pause), started, parser, state)

      step ->
        Telemetry.pause(state, started)
        step
    end
  end

  defp wait(timeout, parser, %{monitor: nil, socket: socket} = state) do
    case :ssl.recv(socket, 0, min(timeout, @longest_tls_wait)) do
      {:ok, bytes} -> Parser.feed(parser, IO.iodata_to_binary(bytes))
      {:error, :timeout} -> next(&Parser.receive_slice/1, parser, state)
      {:error, reason} when is_atom(reason) -> Parser.disconnect(parser, reason)
      {:error, _alert} -> Parser.disconnect(parser, :closed)
    end
  end

  defp wait(timeout, %{reference: reference} = parser, %{monitor: monitor, listener: listener}) do
    receive do
      {:select, _socket, ^reference, :ready_input} -> Parser.receive_inline(parser)
      {:DOWN, ^monitor, _type, _socket, _info} -> Parser.disconnect(parser, :closed)
      {:DOWN, ^listener, :process, _pid, _reason} -> Parser.disconnect(parser, :closed)
    after
      # Late is the peer only if there is nothing to read now.
      timeout -> Parser.receive_slice(parser)
    end
  end

  defp min_wait(:infinity), do: :infinity
  defp min_wait(timeout), do: min(timeout, @longest_wait)

  # Polling has stopped, so no further one can come.
  defp flush(reference) do
    receive do
      {:select, _socket, ^reference, _ready} -> flush(reference)
    after
      0 -> :ok
    end
  end

  defp log(nil), do: :ok

  defp log(:panic) do
    Logger.error("Barytherium ended a connection because its native code panicked")
  end

  defp log(failure) do
    error = ParseError.from_native(failure)
    message = "Barytherium ended a connection: " <> Exception.message(error)
    Logger.error(message, barytherium_parse_error: error)
  end
end
