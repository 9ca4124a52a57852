defmodule Barytherium.Network.ReceiveLoop do
  @moduledoc false
  # The process of one connection's receiving side. It does what the native side says is next, and
  # tells the network when the connection ends. `Barytherium.Network.Receiver` starts it.

  use GenServer, restart: :temporary

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
  def init(state) do
    with {:ok, greeting} <- Map.fetch(state, :greeting),
         do: GenServer.cast(state.listener_pid, greeting)

    # `:ssl` drops what was not read from a passive socket when an alert arrives. So this process becomes the
    # owner of an active one, and begins when it is.
    if active_ssl?(state), do: {:ok, state}, else: {:ok, state, {:continue, :open}}
  end

  @doc "Whether the receiver of this socket has to become its owner, and is then told to `open/1`."
  @spec active_ssl?(map()) :: boolean()
  def active_ssl?(%{socket: socket} = state),
    do: Connection.tls(socket) == :otp and Map.has_key?(state, :greeting)

  @doc "The receiver is the owner of its socket."
  @spec open(pid()) :: :ok
  def open(receiver), do: GenServer.cast(receiver, {:barytherium, :open})

  @impl true
  def handle_continue(:open, %{socket: socket} = state) do
    # An `:ssl` socket has no descriptor with plain bytes. `:ssl` reads from it.
    ssl? = Connection.tls(socket) == :otp
    ssl = if ssl?, do: if(active_ssl?(state), do: :active, else: :passive)
    caller = with pid when is_pid(pid) <- state[:caller], do: Process.monitor(pid)

    # An idle connection keeps this, so it holds nothing that is not needed any more.
    loop = %{
      socket: socket,
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
        socket: unless(ssl?, do: Socket.monitor(Socket.tcp(socket)))
      },
      parser: nil,
      next: :inline,
      # When the timer for the deadline goes off, in milliseconds; nil without one.
      timer: nil,
      # When the loop stopped reading because the listener is behind; nil if it has not. The timer that
      # makes it look again.
      paused: nil,
      pause_timer: nil
    }

    if ssl?, do: open_ssl(state, loop), else: open_tcp(state, loop)
  end

  defp open_tcp(state, loop) do
    socket = Socket.tcp(state.socket)

    with {:ok, bytes} <- Socket.leftover(state.socket),
         {:ok, descriptor} <- Socket.descriptor(socket),
         {:ok, parser} <- Parser.open(descriptor, bytes, state) do
      loop = %{loop | parser: parser}
      # The socket may have been closed before we duplicated it, and its number reused.
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

  defp open_ssl(state, loop) do
    case Parser.open(nil, "", state) do
      {:ok, parser} -> act(:yield, %{loop | parser: parser})
      {:error, reason} -> finish(reason, loop)
    end
  end

  @impl true
  # There is something to read.
  def handle_info({:select, _socket, reference, :ready_input}, %{paused: nil} = loop)
      when reference == loop.parser.reference,
      do: read(:inline, loop)

  # A process or port that this one depends on has ended.
  def handle_info({:DOWN, monitor, _type, _object, _info}, %{monitors: monitors} = loop) do
    cond do
      monitor == monitors.listener -> loop.parser |> Parser.disconnect(:no_listener) |> act(loop)
      monitor in Map.values(monitors) -> loop.parser |> Parser.disconnect(:closed) |> act(loop)
      true -> ignore(loop)
    end
  end

  # The next call, after every message that was waiting.
  def handle_info(:timeout, %{paused: nil, next: next} = loop) when next != :wait,
    do: read(next, loop)

  # It is this connection's turn.
  def handle_info({:barytherium, :turn}, %{next: :turn, paused: nil} = loop),
    do: read(:turn, loop)

  # What it has sent may be in the mailbox, behind the message of the timer.
  def handle_info(:deadline, %{ssl: :active, paused: nil} = loop) do
    case take_arrived(%{loop | timer: nil}) do
      %{inbox: []} = loop -> read(:inline, loop)
      loop -> act({:wait, :infinity}, loop)
    end
  end

  # The peer is late only if the socket is empty. If it is not late, the native side says how long
  # to wait from here.
  def handle_info(:deadline, %{paused: nil} = loop), do: read(:inline, %{loop | timer: nil})
  def handle_info(:deadline, loop), do: {:noreply, %{loop | timer: nil}}

  def handle_info({:ssl, _socket, data}, %{ssl: :active} = loop),
    do: arrived(%{loop | inbox: [data | loop.inbox]})

  def handle_info({:ssl_passive, _socket}, %{ssl: :active} = loop),
    do: arrived(%{loop | active: false})

  def handle_info({:ssl_closed, _socket}, %{ssl: :active} = loop),
    do: arrived(%{loop | ended: loop.ended || :closed})

  def handle_info({:ssl_error, _socket, reason}, %{ssl: :active} = loop),
    do: arrived(%{loop | ended: loop.ended || reason})

  # Time to look at the listener's mailbox, or another connection has handed this over.
  def handle_info({:barytherium, :resume}, %{paused: paused} = loop) when paused != nil,
    do: resume(loop)

  # Everything that was read before is in the mailbox of `pid` already.
  def handle_info({:barytherium, :fence, pid, message}, loop) do
    send(pid, message)
    ignore(loop)
  end

  def handle_info(_stray, loop), do: ignore(loop)

  @impl true
  def handle_cast({:barytherium, :open}, %{greeting: _greeting} = state),
    do: handle_continue(:open, state)

  def handle_cast(_stray, loop), do: ignore(loop)

  @impl true
  def handle_call(_stray, from, loop) do
    GenServer.reply(from, {:error, :unknown_call})
    ignore(loop)
  end

  # A message cancels the timeout of a GenServer, so the timeout is set again.
  defp ignore(%{paused: nil, next: :turn} = loop), do: {:noreply, loop, @longest_queueing}
  defp ignore(%{paused: nil, next: next} = loop) when next != :wait, do: {:noreply, loop, 0}
  defp ignore(loop), do: {:noreply, loop}

  @impl true
  def terminate(_reason, loop) do
    # The parser is nil after an orderly end.
    if loop[:parser], do: Parser.disconnect(loop.parser, :closed)
    if loop[:ssl] == :active, do: give_back(loop)
    # Our network may still have to write something, and closes the socket itself.
    unless loop[:own_network], do: Connection.close(loop.socket)
  end

  # Our network may still have to write, and `:ssl` closes a socket whose owner has ended.
  defp give_back(%{socket: socket, network_pid: network}) do
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
  defp arrived(%{next: :wait, paused: nil} = loop), do: act({:wait, :infinity}, loop)
  defp arrived(loop), do: ignore(loop)

  defp read(:inbox, %{inbox: inbox} = loop) do
    bytes = inbox |> Enum.reverse() |> IO.iodata_to_binary()
    loop.parser |> Parser.feed(bytes) |> act(%{loop | inbox: []})
  end

  defp read(:slice, %{ssl: nil} = loop), do: loop.parser |> Parser.receive_slice() |> act(loop)
  defp read(:slice, loop), do: loop.parser |> Parser.feed_slice() |> act(loop)
  defp read(:turn, loop), do: read(:inline, loop)

  defp read(:inline, %{ssl: nil} = loop),
    do: loop.parser |> Parser.receive_inline() |> act(loop)

  defp read(:inline, loop), do: loop.parser |> Parser.feed("") |> act(loop)

  defp read({:recv, timeout}, %{parser: parser, socket: socket} = loop) do
    case :ssl.recv(socket, 0, min(timeout, @longest_ssl_wait)) do
      {:ok, bytes} ->
        parser |> Parser.feed(IO.iodata_to_binary(bytes)) |> act(loop)

      {:error, :timeout} ->
        read(:inline, loop)

      {:error, reason} ->
        parser |> Parser.disconnect(ConnectionLog.reason(reason, loop)) |> act(loop)
    end
  end

  # With a timeout of 0, every message that is waiting is handled before the next call.
  defp act({:wait, timeout}, %{ssl: :passive} = loop),
    do: {:noreply, %{loop | next: {:recv, timeout}}, 0}

  defp act({:wait, _timeout}, %{ssl: :active, inbox: [_ | _]} = loop),
    do: {:noreply, %{loop | next: :inbox}, 0}

  defp act({:wait, _timeout}, %{ssl: :active, ended: ended} = loop) when ended != nil,
    do: loop.parser |> Parser.disconnect(ConnectionLog.reason(ended, loop)) |> act(loop)

  defp act({:wait, timeout}, %{ssl: :active, active: false} = loop) do
    # It fails if the connection has ended while the socket was passive.
    case :ssl.setopts(loop.socket, active: @ssl_records) do
      :ok -> act({:wait, timeout}, %{loop | active: true})
      {:error, _reason} -> act({:wait, timeout}, %{loop | ended: :closed})
    end
  end

  defp act({:wait, timeout}, loop), do: {:noreply, set_timer(timeout, %{loop | next: :wait})}
  defp act(:again, loop), do: {:noreply, %{loop | next: :slice}, 0}

  defp act(:yield, loop) do
    :erlang.yield()
    {:noreply, %{loop | next: :inline}, 0}
  end

  defp act(:queue, loop), do: {:noreply, %{loop | next: :turn}, @longest_queueing}
  defp act(:full, loop), do: resume(loop)

  defp act({:connected_frame, frame}, loop) do
    {_hb_send, hb_recv} = GenServer.call(loop.network_pid, {:connected_frame, frame}, :infinity)
    Parser.agree(loop.parser, hb_recv)
    # Many connections are idle from here on, and would keep what it took to get here.
    :erlang.garbage_collect()
    act(:yield, loop)
  end

  # Records go through the sender, in one order with those that it writes. A sender that is not ours
  # sends them with its next write, or they are sent when the socket is closed.
  defp act({:owed, step}, loop) do
    if loop.own_network, do: Sender.flush(loop.sender_pid)
    act(step, loop)
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
    ConnectionLog.failure(failure, loop)
    finish(reason, loop)
  end

  # The listener may be too far behind.
  defp resume(loop), do: loop.parser |> Parser.resume() |> pause_or_go_on(loop)

  defp pause_or_go_on({:look, pid}, %{listener_pid: listener} = loop) do
    case Process.info(pid, :message_queue_len) do
      {:message_queue_len, queued} -> loop.parser |> Parser.looked(queued) |> pause_or_go_on(loop)
      nil when pid == listener -> loop.parser |> Parser.disconnect(:no_listener) |> act(loop)
      # Who made its route will know.
      nil -> loop.parser |> Parser.looked(0) |> pause_or_go_on(loop)
    end
  end

  defp pause_or_go_on({:pause, timeout}, loop) do
    timer = Process.send_after(self(), {:barytherium, :resume}, timeout)
    loop = cancel_pause(loop)
    {:noreply, %{loop | paused: loop.paused || System.monotonic_time(), pause_timer: timer}}
  end

  defp pause_or_go_on(:yield, %{paused: nil} = loop), do: act(:yield, loop)

  defp pause_or_go_on(:yield, loop) do
    Telemetry.pause(loop, loop.paused)
    act(:yield, %{cancel_pause(loop) | paused: nil})
  end

  # A timer that is left would end a later pause, and start one of its own.
  defp cancel_pause(%{pause_timer: nil} = loop), do: loop

  defp cancel_pause(loop) do
    Process.cancel_timer(loop.pause_timer)
    %{loop | pause_timer: nil}
  end

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
