defmodule Barytherium.Client.Server do
  @moduledoc false
  # The process of `Barytherium.Client`.
  #
  #     :disconnected ──wait is over──► :connecting ──CONNECTED──► :connected
  #          ▲                              │                      │        │
  #          └──────── failed ──────────────┘          socket ended│        │close/2
  #          └── its last messages are handled ── :ending ◄────────┘        ▼
  #                                                                     :closing ──► stop
  #
  # It never waits for another process. `Barytherium.Network` connects and writes, the delivery process
  # passes on what arrives (see `Barytherium.Client.Delivery`), and short-lived processes do what may
  # take a while.
  @behaviour :gen_statem

  import Barytherium.Client.{Connecting, Exchange}

  alias Barytherium.Client.{Backoff, Dispatcher, Events, Requests, Session}
  alias Barytherium.Connection.Deadline
  alias Barytherium.{Frame, Network}
  alias Barytherium.Network.Sender

  # Milliseconds that the network process may take to write what is left when the client is stopped.
  # It gives up itself after 10 s.
  @stop_timeout 11_000

  # Milliseconds that the receipt for a renewed subscription may take.
  @renewal_timeout 10_000

  @spec init(map()) :: :gen_statem.init_result(atom())
  @impl true
  def init(settings) do
    # With this, `terminate/3` runs when the parent ends.
    Process.flag(:trap_exit, true)

    data = %{
      settings: settings,
      delivery: settings[:delivery] || start_dispatcher(),
      subscriptions: settings[:subscriptions] || %{},
      next_subscription: map_size(settings[:subscriptions] || %{}) + 1,
      backoff: settings.backoff,
      # The brokers that are left to try before the next wait, and the one in use.
      round: [],
      endpoint: nil,
      network: nil,
      sender: nil,
      greeter: nil,
      session: nil,
      # Why the connection is about to end, if this side knows: an ERROR frame or an atom.
      verdict: nil,
      # Whether a broker refused in this round.
      refused: false,
      # When the attempt to connect began and when it succeeded, in native time units.
      started: nil,
      since: nil,
      # Why the last connection, or attempt, ended.
      reason: nil,
      connections: 0,
      requests: %Requests{},
      # Calls that wait for a connection, by the order in which they came:
      # `{from, action, timer}`.
      waiting: %{},
      next_waiting: 1,
      closing: nil
    }

    {:ok, :disconnected, data, {:next_event, :internal, :connect}}
  end

  defp start_dispatcher do
    {:ok, dispatcher} = Dispatcher.start_link(self())
    dispatcher
  end

  @impl true
  def callback_mode, do: :handle_event_function

  @impl true
  # Connecting

  def handle_event(:internal, :connect, :disconnected, data), do: connect(new_round(data))
  def handle_event(:state_timeout, :connect, :disconnected, data), do: connect(new_round(data))

  def handle_event(:cast, {:connect, {:ok, sender}}, :connecting, data) do
    Process.monitor(sender)
    {:keep_state, %{data | sender: sender, greeter: greet(sender, data)}}
  end

  def handle_event(:cast, {:connect, {:error, reason}}, :connecting, data),
    do: ended(reason, data)

  def handle_event(:cast, {:greeting_failed, sender}, :connecting, %{sender: sender} = data),
    do: {:keep_state, hang_up(:credentials, data)}

  def handle_event(
        {:call, from},
        {:connected, sender, frame},
        :connecting,
        %{sender: sender} = data
      ),
      do: connected(frame, from, data)

  def handle_event({:call, from}, {:connected, _sender, _frame}, _state, _data),
    do: {:keep_state_and_data, {:reply, from, :error}}

  # Endings

  # The last messages and receipts of the connection are still on their way to the delivery process. It
  # reports the disconnect after them.
  def handle_event(
        :info,
        {:DOWN, _ref, :process, sender, _},
        :connected,
        %{sender: sender} = data
      ),
      do: {:next_state, :ending, data}

  def handle_event(:cast, {:disconnect, reason}, :closing, data), do: closed(reason, data)

  def handle_event(:cast, {:disconnect, reason}, state, data) when state != :disconnected,
    do: ended(reason, data)

  # The network process has crashed, so there will be no report.
  def handle_event(:info, {:EXIT, network, _reason}, state, %{network: network} = data)
      when network != nil do
    data = %{data | network: nil}
    if state == :closing, do: closed(:closed, data), else: ended(:closed, data)
  end

  def handle_event(:info, {:EXIT, delivery, reason}, _state, %{delivery: delivery}),
    do: {:stop, reason}

  # Receipts and errors

  def handle_event(:cast, {:control, sender, frames}, state, %{sender: sender} = data),
    do: close_if_done(state, Enum.reduce(frames, data, &control/2))

  def handle_event(:info, {:request_timeout, number}, state, data),
    do: close_if_done(state, fail(number, :timeout, data))

  # There was no room for it in time, or its connection has ended.
  def handle_event(:info, {:not_written, {:request, number}, reason}, state, data),
    do: close_if_done(state, fail(number, not_written(reason), data))

  # Calls

  def handle_event({:call, from}, {:write, frames, sender, timeout, wait}, state, data) do
    action = {:write, frames, sender, Deadline.in_ms(timeout)}
    when_connected(action, from, if(wait, do: timeout), state, data)
  end

  def handle_event({:call, from}, {:session, receipt, timeout, wait}, state, data),
    do: when_connected({:session, receipt}, from, if(wait, do: timeout), state, data)

  def handle_event(:info, {:waiting_timeout, number}, _state, data) do
    case Map.pop(data.waiting, number) do
      {nil, _waiting} ->
        :keep_state_and_data

      {{from, action, _timer}, waiting} ->
        {:keep_state, refuse(action, from, %{data | waiting: waiting})}
    end
  end

  # The subscriptions of a consumer are its options.
  def handle_event({:call, from}, call, _state, %{settings: %{delivery: _}})
      when elem(call, 0) in [:subscribe, :unsubscribe],
      do: {:keep_state_and_data, {:reply, from, {:error, :consumer}}}

  def handle_event({:call, from}, {:subscribe, _, _, _}, :closing, _data),
    do: {:keep_state_and_data, {:reply, from, {:error, :disconnected}}}

  def handle_event({:call, from}, {:subscribe, subscription, pid, timeout}, state, data) do
    number = data.next_subscription
    subscription = Map.put(subscription, :number, number)
    entry = %{subscription: subscription, pid: pid, monitor: Process.monitor(pid), ending: false}
    data = put_in(%{data | next_subscription: number + 1}.subscriptions[number], entry)

    if state == :connected,
      do: {:keep_state, write_subscribe(subscription, {:subscribe, from, number}, timeout, data)},
      else: {:keep_state, data, {:reply, from, {:ok, number}}}
  end

  def handle_event({:call, from}, {:unsubscribe, number, timeout}, state, data) do
    case data.subscriptions do
      %{^number => %{ending: false} = entry} ->
        {:keep_state, unsubscribe(entry, {:caller, from}, timeout, state, data)}

      _none ->
        {:keep_state_and_data, {:reply, from, {:error, :not_subscribed}}}
    end
  end

  def handle_event({:call, from}, {:acknowledge, command, messages, headers}, state, data)
      when state in [:connected, :closing] do
    reply =
      with {:ok, frames} <- Session.acknowledge(data.session, command, messages, headers),
           do: Sender.write(data.session.sender, frames)

    {:keep_state_and_data, {:reply, from, reply}}
  end

  def handle_event({:call, from}, {:acknowledge, _, _, _}, _state, _data),
    do: {:keep_state_and_data, {:reply, from, {:error, :stale}}}

  # A dispatcher asks once for each subscription of a connection.
  def handle_event({:call, from}, {:subscriber, id}, _state, %{session: session} = data) do
    entry = data.subscriptions[session && Session.number(session, id)]
    {:keep_state_and_data, {:reply, from, entry && {entry.pid, entry.subscription.ack}}}
  end

  # A subscriber has ended.
  def handle_event(:info, {:DOWN, monitor, :process, _pid, _reason}, state, data) do
    case Enum.find(data.subscriptions, fn {_number, entry} -> entry.monitor == monitor end) do
      {_number, %{ending: false} = entry} ->
        {:keep_state, unsubscribe(entry, :nobody, @renewal_timeout, state, data)}

      _none ->
        :keep_state_and_data
    end
  end

  def handle_event({:call, from}, :status, state, data),
    do: {:keep_state_and_data, {:reply, from, Events.status(state, data)}}

  # Closing

  # Ends the subscriptions whose messages need no acknowledgement. When this returns, the delivery
  # process has got their last messages.
  def handle_event({:call, from}, {:quiesce, timeout}, state, data) do
    {:keep_state, quiesce({:caller, from}, timeout, state, data)}
  end

  def handle_event({:call, {pid, _tag} = from}, {:close, _timeout}, _state, %{delivery: pid}),
    do: {:keep_state_and_data, {:reply, from, {:error, :own_callback}}}

  def handle_event({:call, from}, {:close, timeout}, :connected, data) do
    Process.send_after(self(), :close_timeout, timeout)
    Events.closing(data)
    data = %{data | closing: {from, Deadline.in_ms(timeout)}}
    close_if_done(:closing, quiesce(:nobody, timeout, :connected, data))
  end

  def handle_event({:call, from}, {:close, _timeout}, :closing, _data),
    do: {:keep_state_and_data, {:reply, from, {:error, :closing}}}

  def handle_event({:call, from}, {:close, _timeout}, _state, data),
    do: {:stop_and_reply, :normal, {:reply, from, :ok}, abandon(data)}

  def handle_event(:info, :close_timeout, :closing, %{closing: {from, _deadline}} = data),
    do: {:stop_and_reply, :normal, {:reply, from, {:error, :timeout}}, abandon(data)}

  # Reports about an earlier connection, exits of processes that have done their work, and strays.
  def handle_event(_type, _event, _state, _data), do: :keep_state_and_data

  @impl true
  def terminate(_reason, _state, data) do
    data = fail_all(:unconfirmed, data)
    for {_number, {from, action, _timer}} <- data.waiting, do: refuse(action, from, data)
    stop_greeter(data)
    stop_and_wait(data.network)
  end

  # Ends the connection at once. Nobody waits for what may still have to be written.
  defp abandon(%{network: nil} = data), do: data

  defp abandon(%{network: network} = data) do
    Process.unlink(network)
    Process.exit(network, :kill)
    %{data | network: nil}
  end

  # Its acknowledgements and a DISCONNECT are written before the application, or the VM, stops.
  defp stop_and_wait(nil), do: :ok

  defp stop_and_wait(network) do
    monitor = Process.monitor(network)
    Process.exit(network, :shutdown)

    receive do
      {:DOWN, ^monitor, :process, ^network, _reason} -> :ok
    after
      @stop_timeout -> :ok
    end
  end

  @impl true
  # Events may hold bodies.
  def format_status(status) do
    status
    |> Map.replace_lazy(:queue, fn queue -> for {type, _event} <- queue, do: {type, :hidden} end)
    |> Map.replace(:log, [])
    |> Map.replace_lazy(:data, &Map.drop(&1, [:waiting, :settings]))
  end

  # Connecting

  defp connect(%{round: [endpoint | round], delivery: delivery} = data) do
    {:ok, network} = Network.start_link(delivery, endpoint.host, endpoint.port, endpoint.opts.())

    {:next_state, :connecting,
     %{
       data
       | network: network,
         endpoint: endpoint,
         round: round,
         verdict: nil,
         started: System.monotonic_time()
     }}
  end

  defp connected(frame, from, data) do
    session = Session.new(data.sender, frame)
    {ending, subscriptions} = data.subscriptions |> Map.values() |> Enum.split_with(& &1.ending)
    data = Enum.reduce(ending, data, &forget(&1.subscription.number, &2))
    subscriptions = subscriptions |> Enum.map(& &1.subscription) |> Enum.sort_by(& &1.number)
    # With this the delivery process knows all of them before the first message can come.
    {_frames, known} = Enum.map_reduce(subscriptions, session, &Session.subscribe(&2, &1))
    :gen_statem.reply(from, {:ok, known})
    waiting = Enum.sort(data.waiting)

    data = %{
      data
      | session: session,
        connections: data.connections + 1,
        since: System.monotonic_time(),
        waiting: %{}
    }

    Events.connected(frame, data)

    data =
      Enum.reduce(
        subscriptions,
        data,
        &write_subscribe(&1, {:renewal, &1}, @renewal_timeout, &2)
      )

    {:next_state, :connected, Enum.reduce(waiting, data, &stop_waiting/2)}
  end

  defp stop_waiting({_number, {from, action, timer}}, data) do
    Process.cancel_timer(timer)
    perform(action, from, data)
  end

  # Endings

  defp ended(reason, data) do
    reason = data.verdict || reason
    refused = data.refused or (data.session == nil and is_struct(reason, Frame))
    data = release(%{data | reason: reason, refused: refused})
    lasted = data.since && System.monotonic_time() - data.since

    if lasted,
      do: Events.disconnected(reason, lasted, data),
      else: Events.connection_failure(reason, data)

    go_on(lasted, data)
  end

  # The next broker is tried at once if this one could not be reached.
  defp go_on(nil, %{round: [_ | _]} = data), do: connect(reset(data))

  defp go_on(lasted, data) do
    {wait, backoff} = data.backoff |> reset_backoff(lasted) |> Backoff.next()
    wait = if data.refused, do: Backoff.longest(backoff), else: wait
    data = %{reset(data) | backoff: backoff}
    {:next_state, :disconnected, data, {:state_timeout, wait, :connect}}
  end

  defp reset_backoff(backoff, nil), do: backoff

  defp reset_backoff(backoff, lasted) do
    if System.convert_time_unit(lasted, :native, :millisecond) >= backoff.longest,
      do: Backoff.reset(backoff),
      else: backoff
  end

  # Gives up everything that belongs to the connection.
  defp release(data) do
    stop_greeter(data)
    # This process is its parent, so it ends, and as it is not connected, at once.
    if data.network, do: Process.exit(data.network, :shutdown)
    fail_all(:unconfirmed, data)
  end

  defp reset(data),
    do: %{data | network: nil, sender: nil, greeter: nil, session: nil, since: nil}

  # The DISCONNECT is written when the broker has answered everything before it.
  defp close_if_done(state, %{closing: {_from, deadline}} = data)
       when state in [:connected, :closing] do
    if Requests.none?(data.requests), do: close_network(data.network, Deadline.left(deadline))
    {:next_state, :closing, data}
  end

  defp close_if_done(_state, data), do: {:keep_state, data}

  defp not_written(reason) when reason in [:timeout, :unescapable], do: reason
  defp not_written(_connection_has_ended), do: :unconfirmed

  # The network closes at the deadline too, and what was not written by then is lost.
  defp closed(reason, %{closing: {from, deadline}} = data) do
    reply =
      cond do
        Deadline.left(deadline) == 0 -> {:error, :timeout}
        Requests.none?(data.requests) -> :ok
        true -> {:error, reason}
      end

    data = release(%{data | reason: reason})
    Events.closed(reason, System.monotonic_time() - data.since, data)
    {:stop_and_reply, :normal, {:reply, from, reply}, reset(data)}
  end

  # Requests

  # `wait`: how long to wait for a connection, or nil.
  defp when_connected(action, from, _wait, :connected, data),
    do: {:keep_state, perform(action, from, data)}

  defp when_connected(action, from, wait, state, data) when wait != nil and state != :closing do
    number = data.next_waiting
    timer = Process.send_after(self(), {:waiting_timeout, number}, wait)
    waiting = Map.put(data.waiting, number, {from, action, timer})
    {:keep_state, %{data | waiting: waiting, next_waiting: number + 1}}
  end

  defp when_connected(action, from, _wait, _state, data),
    do: {:keep_state, refuse(action, from, data)}
end
