defmodule Barytherium.Network.Receiver do
  @moduledoc """
  Moves frames from an open socket to a listener, the process that gets the frames.

  Reading, parsing and delivering are native. A connection with little to read is read on the
  scheduler of its own process. A flood is read in short calls on dirty I/O threads; if more connections
  flood than there are schedulers, they take turns. An idle connection holds no thread: its process
  waits for a message.

  ## Messages

  Frames are cast to `listener_pid`:

      {:barytherium, :frames, {[%Barytherium.Frame{}, ...], sender_pid}}

  The list is never empty, and its order is that of the wire. The first frame of a connection has
  to be CONNECTED, and comes alone in its list. `network_pid` is then called with
  `{:connected_frame, frame}`. Its reply is `{hb_send, hb_recv}`, the agreed heart-beats in
  milliseconds. If the first frame is ERROR, it is delivered and the connection ends with `:closed`,
  even if the peer does not close it. The log and `Barytherium.Telemetry` say that it was refused.

  The end is cast to `network_pid`, once, after everything that came before it has arrived in the
  listener's mailbox:

      {:barytherium, :disconnect, reason}

    * `:closed` - the peer closed or reset the connection, this side closed the socket, or the
      listener is gone;
    * `:timeout` - no CONNECTED within 5 s, or nothing at all for twice the agreed heart-beat and 2 s;
    * `:parse_error` - the peer does not speak STOMP, see `Barytherium.ParseError`;
    * `:protocol_error` - the peer breaks the protocol of WebSocket;
    * `:emfile` - there are no descriptors left, or the VM cannot poll one as high as this;
    * a POSIX atom such as `:etimedout`, if reading failed with it; for a reset `:econnreset`, on a
      socket with the option `show_econnreset`.

  The socket is closed then.

  With TLS, and in a WebSocket, reading may leave something to be sent: an alert, or the answer to a ping. The sender of a
  `Barytherium.Network` sends it at once. Without one it is sent with whatever `Barytherium.Connection.send/2` is called
  for next.

  ## Back-pressure

  If the listener is a process of this node and its mailbox is too long (the option
  `high_water_mark` of `Barytherium.Network.start_link/4`), the loop stops reading until the mailbox
  is shorter. The peer then feels TCP's window. While nothing is read, silence is no time-out. All
  connections to one listener share its mailbox, and go on in turn. Messages to a listener on
  another node are held up by the distribution's own buffer.
  """

  alias Barytherium.{Connection, Frame, Native, Schema}
  alias Barytherium.Frame.ParseOptions
  alias Barytherium.Network.{Options, ReceiveLoop, Socket}

  @longest_wait Schema.longest_wait()

  # The process keeps little, and it does not change. With the default, collection by generations,
  # the heap of an idle connection is three times as large after a few heart-beats.
  @spawn_options [spawn_opt: [fullsweep_after: 0]]

  @typedoc """
  Where the loop starts.

    * `:parse_state` - where parsing starts (`Barytherium.Frame.parse_state/1`);
    * `:hb_recv` - `nil` before CONNECTED, `0` for no heart-beats, else milliseconds;
    * `:options` - the receiving ones of `Barytherium.Network.start_link/4`;
    * `:stats` - the counters that `Barytherium.Network.stats/1` reads.
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
  def start_loop(state) do
    with {:ok, receiver} <- :gen_statem.start_link(ReceiveLoop, prepare(state), @spawn_options) do
      if ReceiveLoop.active_ssl?(state), do: hand_over(state.socket, receiver)
      {:ok, receiver}
    end
  end

  # If the socket has been closed meanwhile, the receiver will notice.
  defp hand_over(socket, receiver) do
    Connection.give(socket, receiver)
    ReceiveLoop.open(receiver)
  end

  @doc """
  Receives until the connection ends, and returns then.

  The loop runs in a process of its own, which ends with the caller. The caller's mailbox is not
  touched.

  Raises `ArgumentError` if the socket is not passive and raw.
  """
  @spec loop(state()) :: :ok
  def loop(state) do
    state = prepare(state)
    # If the caller is the listener, it takes nothing before this function returns.
    own_listener = state.listener_pid == self()
    state = Map.merge(state, %{caller: self(), own_listener: own_listener})
    {:ok, receiver} = :gen_statem.start(ReceiveLoop, state, @spawn_options)
    monitor = Process.monitor(receiver)

    receive do
      {:DOWN, ^monitor, :process, ^receiver, :normal} -> :ok
      # It ended before it was monitored.
      {:DOWN, ^monitor, :process, ^receiver, :noproc} -> :ok
      {:DOWN, ^monitor, :process, ^receiver, reason} -> exit(reason)
    end
  end

  @doc "A child that starts with the arguments of `start_link/5`, given as a tuple or a list."
  @spec child_spec(tuple() | list()) :: Supervisor.child_spec()
  def child_spec(args) do
    args = if is_tuple(args), do: Tuple.to_list(args), else: args
    %{id: __MODULE__, restart: :temporary, start: {__MODULE__, :start_link, args}}
  end

  # Runs in the caller, so that the caller learns of its mistakes.
  defp prepare(state) do
    Socket.check!(state.socket)
    check_hb_recv!(Map.get(state, :hb_recv))
    options = state |> Map.get(:options, []) |> Options.check!()

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

  # A name of this node stands for the process that has it now. The loop asks for the length of that
  # process's mailbox.
  defp resolve(name) when is_atom(name), do: Process.whereis(name) || name
  defp resolve({name, node}) when node == node(), do: resolve(name)
  defp resolve(pid) when is_pid(pid), do: pid

  defp resolve({name, node} = listener) when is_atom(name) and is_atom(node) do
    Node.alive?() ||
      raise ArgumentError, "the listener is on node #{node}, and this node is not distributed"

    listener
  end

  defp resolve(other), do: raise(ArgumentError, "the listener is no process: #{inspect(other)}")

  # A state that the caller has parsed with has its own limits. Otherwise the stream starts here, and
  # no version is negotiated before CONNECTED.
  defp parse_state(%{parse_state: parse_state}, _options) when not is_nil(parse_state),
    do: Frame.check_parse_state!(parse_state)

  defp parse_state(_state, options), do: Frame.parse_state(nil, ParseOptions.limits(options))
end
