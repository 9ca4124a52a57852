defmodule Barytherium.Network.ReceiveLoop do
  @moduledoc false
  # The process of one connection's receiving side. It does what the native side says is next, and
  # tells the network when the connection ends. `Barytherium.Network.Receiver` starts it.
  #
  # Its states are what `Barytherium.Native` calls next:
  #
  #   * `:opening` - waits to become the owner of its `:ssl` socket;
  #   * `:read_dirty`, `:read_inline` - reads when it has handled what is in its mailbox;
  #   * `:await_turn` - reads inline after `{:barytherium, :turn}`;
  #   * `:await_input` - reads inline when the socket is ready, or at the deadline;
  #   * `:await_room` - looks at the mailbox of a recipient after `{:barytherium, :room}`, or after a time.
  #
  # With `tls: :otp`, the bytes come from `:ssl`, and "reading" is to decode what it has sent. Then there are two more
  # states: `:read_inbox`, which decodes what an active socket has sent to this process, and `{:recv, ms}`, which asks a
  # passive socket for more in place of `:await_input`.

  @behaviour :gen_statem

  alias Barytherium.{Connection, Schema, Telemetry}
  alias Barytherium.Network.{ConnectionLog, Parser, Sender, Socket}

  # An `:ssl` socket that `:ssl.recv/3` reads is waited for there, where no message is handled. It returns after
  # this many milliseconds, to check that the listener is alive.
  @longest_ssl_wait 5_000

  # How many records, of up to 16 KiB, an active `:ssl` socket sends until it is asked for more.
  @ssl_records 32

  # A connection in the queue for a turn asks again after this many milliseconds. A turn takes one
  # millisecond; a process that has not ended its turn by then is suspended or starved.
  @longest_queueing 1_000

  # How long the end of a connection waits for its last frames to arrive, in milliseconds. A
  # listener that takes longer does not handle signals.
  @longest_arrival 1_000

  @impl true
  def callback_mode, do: :handle_event_function

  @impl true
  def init(state) do
    with {:ok, greeting} <- Map.fetch(state, :greeting),
         do: GenServer.cast(state.listener_pid, greeting)

    # `:ssl` drops what was not read from a passive socket when an alert arrives. So this process becomes the
    # owner of an active one, and begins when it is.
    unless active_ssl?(state), do: open(self())
    {:ok, :opening, state}
  end

  @doc "Whether the receiver of this socket has to become its owner, and is then told to `open/1`."
  @spec active_ssl?(map()) :: boolean()
  def active_ssl?(%{socket: socket} = state),
    do: Connection.tls(socket) == :otp and Map.has_key?(state, :greeting)

  @doc "The receiver is the owner of its socket."
  @spec open(pid()) :: :ok
  def open(receiver), do: :gen_statem.cast(receiver, :open)

  defp open_connection(%{socket: socket} = state) do
    # An `:ssl` socket has no descriptor with plain bytes. `:ssl` reads from it.
    ssl? = Connection.tls(socket) == :otp
    ssl = if ssl?, do: if(active_ssl?(state), do: :active, else: :passive)
    caller = with pid when is_pid(pid) <- state[:caller], do: Process.monitor(pid)

    # An idle connection keeps this, so it holds nothing that is not needed any more.
    loop = %{
      socket: socket,
      # The `:gen_tcp` or `:ssl` socket in it.
      transport: Socket.transport(socket),
      ssl: ssl,
      # What an active `:ssl` socket has sent, the latest first, whether it sends more, and how it has ended.
      inbox: [],
      active: false,
      ended: nil,
      listener_pid: state.listener_pid,
      network_pid: state.network_pid,
      sender_pid: state.sender_pid,
      # Whether the process in `network_pid` is the one that opened the socket.
      own_network: Map.has_key?(state, :greeting),
      # The host and port that the user gave, for the log.
      peer: state[:peer] || Socket.peer(socket),
      monitors: %{
        listener: Process.monitor(state.listener_pid),
        caller: caller,
        socket: unless(ssl?, do: Socket.monitor(Socket.transport(socket)))
      },
      parser: nil,
      # When the timer for the deadline goes off, in milliseconds; nil without one.
      timer: nil,
      # When the loop stopped reading because a recipient is behind; nil if it has not.
      paused: nil
    }

    if ssl?, do: open_ssl(state, loop), else: open_tcp(state, loop)
  end

  defp open_tcp(state, loop) do
    socket = loop.transport

    with {:ok, bytes} <- Socket.leftover(state.socket),
         {:ok, descriptor} <- Socket.descriptor(socket),
         {:ok, parser} <- Parser.open(descriptor, bytes, state) do
      loop = %{loop | parser: parser}
      # The socket may have been closed before we duplicated it, and its number reused.
      if Socket.descriptor(socket) == {:ok, descriptor} do
        Parser.confirm(parser, socket)
        next(:read_inline, loop)
      else
        disconnect(:closed, loop)
      end
    else
      {:error, reason} when reason in [:einval, :ebadf] -> finish(:closed, loop)
      {:error, reason} -> finish(reason, loop)
    end
  end

  defp open_ssl(state, loop) do
    case Parser.open(nil, "", state) do
      {:ok, parser} -> next(:read_inline, %{loop | parser: parser})
      {:error, reason} -> finish(reason, loop)
    end
  end

  @impl true
  def handle_event(:cast, :open, :opening, state), do: open_connection(state)
  def handle_event({:call, from}, _stray, _state, _loop), do: unknown_call(from)
  # What was sent to the socket before this process owned it is for `:ssl`.
  def handle_event(_type, _event, :opening, _loop), do: :keep_state_and_data

  # A process or port that this one depends on has ended.
  def handle_event(:info, {:DOWN, monitor, _type, _object, _info}, _state, loop) do
    cond do
      monitor == loop.monitors.listener -> disconnect(:no_listener, loop)
      monitor in Map.values(loop.monitors) -> disconnect(:closed, loop)
      true -> :keep_state_and_data
    end
  end

  # Everything that was read before is in the mailbox of `pid` already.
  def handle_event(:info, {:barytherium, :fence, pid, message}, _state, _loop) do
    send(pid, message)
    :keep_state_and_data
  end

  # Every message that was waiting has been handled.
  def handle_event(:info, {:barytherium, :read}, state, loop), do: read(state, loop)

  # It is this connection's turn, or it asks again.
  def handle_event(:info, {:barytherium, :turn}, :await_turn, loop), do: read(:read_inline, loop)
  def handle_event(:state_timeout, :turn, :await_turn, loop), do: read(:read_inline, loop)

  # There is something to read.
  def handle_event(:info, {:select, _socket, reference, :ready_input}, :await_input, loop)
      when reference == loop.parser.reference,
      do: read(:read_inline, loop)

  # What an active `:ssl` socket has sent may be in the mailbox, behind the message of the timer.
  def handle_event(:info, :deadline, :await_input, %{ssl: :active} = loop) do
    case take_arrived(%{loop | timer: nil}) do
      %{inbox: []} = loop -> read(:read_inline, loop)
      loop -> next({:await_input, :infinity}, loop)
    end
  end

  # The peer is late only if the socket is empty. If it is not late, the native side says how long
  # to wait from here.
  def handle_event(:info, :deadline, :await_input, loop),
    do: read(:read_inline, %{loop | timer: nil})

  def handle_event(:info, :deadline, _state, loop), do: {:keep_state, %{loop | timer: nil}}

  # Time to look at the recipient's mailbox, or another connection has handed this over.
  def handle_event(:info, {:barytherium, :room}, :await_room, loop), do: poll_room(loop)
  def handle_event(:state_timeout, :room, :await_room, loop), do: poll_room(loop)

  def handle_event(:info, {:ssl, _socket, data}, state, %{ssl: :active} = loop),
    do: arrived(state, %{loop | inbox: [data | loop.inbox]})

  def handle_event(:info, {:ssl_passive, _socket}, state, %{ssl: :active} = loop),
    do: arrived(state, %{loop | active: false})

  def handle_event(:info, {:ssl_closed, _socket}, state, %{ssl: :active} = loop),
    do: arrived(state, %{loop | ended: loop.ended || :closed})

  def handle_event(:info, {:ssl_error, _socket, reason}, state, %{ssl: :active} = loop),
    do: arrived(state, %{loop | ended: loop.ended || reason})

  def handle_event(_type, _stray, _state, _loop), do: :keep_state_and_data

  defp unknown_call(from),
    do: {:keep_state_and_data, {:reply, from, {:error, :unknown_call}}}

  @impl true
  def terminate(_reason, _state, loop) do
    # The parser is nil after an orderly end.
    if loop[:parser], do: Parser.disconnect(loop.parser, :closed)
    if loop[:ssl] == :active, do: give_back(loop)
    # Our network may still have to write something, and closes the socket itself.
    unless loop[:own_network], do: Connection.close(loop.socket)
  end

  # Our network may still have to write, and `:ssl` closes a socket whose owner has ended.
  defp give_back(%{transport: socket, network_pid: network}) do
    :ssl.setopts(socket, active: false)
    :ssl.controlling_process(socket, network)
  end

  defp take_arrived(loop) do
    receive do
      {:ssl, _socket, data} -> take_arrived(%{loop | inbox: [data | loop.inbox]})
    after
      0 -> loop
    end
  end

  # Something about an `:ssl` socket, which is looked at when everything before it was delivered.
  defp arrived(:await_input, loop), do: next({:await_input, :infinity}, loop)
  defp arrived(_state, loop), do: {:keep_state, loop}

  defp read(:read_dirty, %{ssl: nil} = loop), do: loop.parser |> Parser.read_dirty() |> next(loop)
  defp read(:read_dirty, loop), do: loop.parser |> Parser.feed_dirty() |> next(loop)

  defp read(:read_inline, %{ssl: nil} = loop),
    do: loop.parser |> Parser.read_inline() |> next(loop)

  defp read(:read_inline, loop), do: loop.parser |> Parser.feed("") |> next(loop)

  defp read(:read_inbox, %{inbox: inbox} = loop) do
    bytes = inbox |> Enum.reverse() |> IO.iodata_to_binary()
    loop.parser |> Parser.feed(bytes) |> next(%{loop | inbox: []})
  end

  defp read({:recv, timeout}, %{parser: parser, transport: socket} = loop) do
    case :ssl.recv(socket, 0, min(timeout, @longest_ssl_wait)) do
      {:ok, bytes} -> parser |> Parser.feed(IO.iodata_to_binary(bytes)) |> next(loop)
      {:error, :timeout} -> read(:read_inline, loop)
      {:error, reason} -> reason |> ConnectionLog.reason(loop) |> disconnect(loop)
    end
  end

  # A stray message.
  defp read(_state, _loop), do: :keep_state_and_data

  # Does what the native side says is next.
  defp next({:await_input, timeout}, %{ssl: :passive} = loop), do: soon({:recv, timeout}, loop)

  defp next({:await_input, _timeout}, %{ssl: :active, inbox: [_ | _]} = loop),
    do: soon(:read_inbox, loop)

  defp next({:await_input, _timeout}, %{ssl: :active, ended: ended} = loop) when ended != nil,
    do: ended |> ConnectionLog.reason(loop) |> disconnect(loop)

  defp next({:await_input, timeout}, %{ssl: :active, active: false} = loop) do
    # It fails if the connection has ended while the socket was passive.
    case :ssl.setopts(loop.transport, active: @ssl_records) do
      :ok -> next({:await_input, timeout}, %{loop | active: true})
      {:error, _reason} -> next({:await_input, timeout}, %{loop | ended: :closed})
    end
  end

  defp next({:await_input, timeout}, loop),
    do: {:next_state, :await_input, set_timer(timeout, loop)}

  defp next(:read_dirty, loop), do: soon(:read_dirty, went_on(loop))

  defp next(:read_inline, loop) do
    :erlang.yield()
    soon(:read_inline, went_on(loop))
  end

  defp next(:await_turn, loop),
    do: {:next_state, :await_turn, loop, {:state_timeout, @longest_queueing, :turn}}

  defp next({:look, pid}, %{listener_pid: listener} = loop) do
    case Process.info(pid, :message_queue_len) do
      {:message_queue_len, queued} -> loop.parser |> Parser.looked(queued) |> next(loop)
      nil when pid == listener -> disconnect(:no_listener, loop)
      # Who made its route will know.
      nil -> loop.parser |> Parser.looked(0) |> next(loop)
    end
  end

  defp next({:await_room, timeout}, loop) do
    loop = %{loop | paused: loop.paused || System.monotonic_time()}
    {:next_state, :await_room, loop, {:state_timeout, timeout, :room}}
  end

  defp next({:connected_frame, frame}, loop) do
    {_hb_send, hb_recv} = GenServer.call(loop.network_pid, {:connected_frame, frame}, :infinity)
    Parser.agree(loop.parser, hb_recv)
    # Many connections are idle from here on, and would keep what it took to get here.
    :erlang.garbage_collect()
    next(:read_inline, loop)
  end

  # Records go through the sender, in one order with those that it writes. A sender that is not ours
  # sends them with its next write, or they are sent when the socket is closed.
  defp next({:owed, next}, loop) do
    if loop.own_network, do: Sender.flush(loop.sender_pid)
    next(next, loop)
  end

  defp next({:relay, casts, next}, loop) do
    Enum.each(casts, fn {listener, message} -> GenServer.cast(listener, message) end)
    next(next, loop)
  end

  # Our network knows that its callback process has ended, and what is still to be done then.
  defp next({:stop, :no_listener, nil}, %{own_network: true} = loop),
    do: {:stop, :normal, %{loop | parser: nil}}

  defp next({:stop, :no_listener, nil}, loop), do: finish(:closed, loop)

  defp next({:stop, reason, failure}, loop) do
    ConnectionLog.failure(failure, loop)
    finish(reason, loop)
  end

  # Goes on when everything that is in the mailbox has been handled.
  defp soon(state, loop) do
    send(self(), {:barytherium, :read})
    {:next_state, state, loop}
  end

  defp went_on(%{paused: nil} = loop), do: loop

  defp went_on(loop) do
    Telemetry.pause(loop, loop.paused)
    %{loop | paused: nil}
  end

  defp poll_room(loop), do: loop.parser |> Parser.poll_room() |> next(loop)
  defp disconnect(reason, loop), do: loop.parser |> Parser.disconnect(reason) |> next(loop)

  defp finish(reason, loop) do
    tell_network({:barytherium, :disconnect, reason}, loop)
    {:stop, :normal, %{loop | parser: nil}}
  end

  # The network's message to the listener must not arrive before our last frames. Messages of
  # different senders may arrive in any order if the listener has `message_queue_data: :off_heap`.
  # So we wait for the listener's answer to a signal, which comes after what we have sent.
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

  # The deadline is a timer, because every message would start a timeout anew. Whatever is read
  # moves the deadline; a timer that goes off too early is set again.
  defp set_timer(:infinity, loop), do: loop

  defp set_timer(timeout, loop) do
    at = System.monotonic_time(:millisecond) + timeout

    if loop.timer && loop.timer <= at do
      loop
    else
      Process.send_after(self(), :deadline, min(timeout, Schema.longest_wait()))
      %{loop | timer: at}
    end
  end
end
