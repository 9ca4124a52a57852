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

  The process goes on after a disconnect, without doing anything, until it is stopped, or the
  callback process ends.
  """
  use GenServer, restart: :temporary

  alias Barytherium.{Connection, Frame, Native, Telemetry}
  alias Barytherium.Network.{Options, Receiver, Sender}

  @doc """
  Connects to `host` and `port`, at once and asynchronously, on behalf of `callback_pid`.

  `host` is a charlist, a string, an IP address or `{:local, path}`.

  ## Options

  #{Options.docs()}

  Other options go to the transport, `:gen_tcp.connect/3` or with `secure: true`
  `:ssl.connect/3`: `:verify`, `:cacertfile`, `:inet6` and so on.
  """
  @spec start_link(pid(), Connection.host(), :inet.port_number(), [term()]) ::
          GenServer.on_start()
  def start_link(callback_pid, host, port, opts \\ []) do
    # In the caller: a mistake in the options is its own.
    Options.split(opts)
    init = %{callback_handler: callback_pid, host: host, port: port, opts: opts}
    GenServer.start_link(__MODULE__, init)
  end

  # Milliseconds that a receiver may take to end when its socket has been closed: it may be in the
  # middle of a slice, or of `:ssl.recv/3`.
  @receiver_timeout 5_000

  @typedoc """
  What a connection has received so far:

    * `:frames` and `:octets` - what came, in all;
    * `:slices` - calls of the native loop, `:waits` - times that it found nothing to read;
    * `:pauses` - times that reading was stopped because the callback process was behind;
    * `:parse_time` - microseconds spent on decoding and on making terms;
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
          last_activity: nil | integer()
        }

  @doc "Counters of the connection, which are always on. They stay after a disconnect."
  @spec stats(GenServer.server()) :: stats()
  def stats(network), do: GenServer.call(network, :stats)

  @impl true
  def init(%{callback_handler: callback_pid} = state) do
    Process.monitor(callback_pid)

    state =
      Map.merge(state, %{
        socket: nil,
        sender_pid: nil,
        receiver_pid: nil,
        reason: nil,
        stats: Native.new_stats()
      })

    {:ok, state, {:continue, :connect}}
  end

  @impl true
  def handle_continue(:connect, state) do
    started = System.monotonic_time()

    case Connection.connect(state.host, state.port, state.opts) do
      {:ok, socket} ->
        Telemetry.connect(state, started, :ok)
        {:noreply, connected(state, socket)}

      {:error, reason} ->
        Telemetry.connect(state, started, reason)
        callback(state, {:connect, {:error, reason}})
        {:noreply, state, :hibernate}
    end
  end

  defp connected(state, socket) do
    {:ok, sender_pid} = Sender.start_link(self(), socket)
    loop = receiver_state(state, socket, sender_pid)
    {:ok, receiver_pid} = Receiver.start_loop(loop)
    %{state | socket: socket, sender_pid: sender_pid, receiver_pid: receiver_pid}
  end

  defp receiver_state(state, socket, sender_pid) do
    %{
      socket: socket,
      listener_pid: state.callback_handler,
      network_pid: self(),
      sender_pid: sender_pid,
      options: state.opts,
      stats: state.stats,
      # From the process that the frames come from: only so does it arrive before them for certain.
      greeting: {:barytherium, :connect, {:ok, sender_pid}}
    }
  end

  @impl true
  def handle_call(:stats, _from, state), do: {:reply, read_stats(state), state}

  def handle_call({:connected_frame, %Frame{} = frame}, _from, state) do
    agreed = if state.socket, do: Sender.connected(state.sender_pid, frame), else: {0, 0}
    {:reply, agreed, state, :hibernate}
  end

  @impl true
  def handle_cast({:barytherium, :disconnect, _reason}, %{socket: nil} = state),
    do: {:noreply, state, :hibernate}

  def handle_cast({:barytherium, :disconnect, reason}, state) do
    reason = state.reason || reason
    callback(state, {:disconnect, reason})
    Telemetry.disconnect(state, reason, read_stats(state))
    # The receiver ends by the socket's end, if not for a reason of its own.
    Connection.close(state.socket)
    stop_sender(state.sender_pid)
    {:noreply, %{state | socket: nil, sender_pid: nil, receiver_pid: nil}, :hibernate}
  end

  # The peer may have sent more before it closed: the receiver reads that, and finds the end.
  def handle_cast({:barytherium, :send_failed, reason}, state) when reason != :timeout,
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
  def handle_info({:DOWN, _monitor, :process, pid, _reason}, %{callback_handler: pid} = state),
    do: {:stop, :shutdown, state}

  def handle_info(:end_receiver, %{receiver_pid: nil} = state), do: {:noreply, state, :hibernate}

  def handle_info(:end_receiver, %{receiver_pid: receiver_pid} = state) do
    Process.unlink(receiver_pid)
    Process.exit(receiver_pid, :kill)
    handle_cast({:barytherium, :disconnect, state.reason}, state)
  end

  defp read_stats(%{stats: stats}) do
    {frames, octets, slices, waits, pauses, parse_time, idle} = Native.stats(stats)

    %{
      frames: frames,
      octets: octets,
      slices: slices,
      waits: waits,
      pauses: pauses,
      parse_time: parse_time,
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
