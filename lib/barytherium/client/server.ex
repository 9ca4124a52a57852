defmodule Barytherium.Client.Server do
  @moduledoc false
  # The process of `Barytherium.Client`, and the callback process of its connections. `README.md` in this
  # folder has the picture.
  #
  #     :disconnected ──wait is over──► :connecting ──CONNECTED──► :connected ──close/2, stop──► :closing
  #          ▲                              │                          │                             │
  #          └──────────── failed ──────────┴──────── the end ─────────┘                             ▼
  #                                                                                                stop
  #
  # It never waits for another process. `Barytherium.Network` connects and writes, the receive loop sends
  # messages to whom they belong, and short-lived processes do what may take a while. So what arrives here
  # is small and seldom, and handled at once: CONNECTED, receipts, errors, the end.
  @behaviour :gen_statem

  import Barytherium.Client.{Connecting, Exchange}

  alias Barytherium.Client.{Backoff, Events, Handlers, Requests, Session}
  alias Barytherium.Connection.Deadline
  alias Barytherium.{Frame, Native, Network}
  alias Barytherium.Network.Sender

  # Milliseconds that the network process may take to write what is left when the client is stopped.
  # It gives up itself after 10 s.
  @stop_timeout 11_000

  # Milliseconds that the last callback may take when a consumer stops, a fifth of the time at most. Then its
  # process is killed.
  @longest_callback 1_000

  # Milliseconds that the receipt for a renewed subscription may take.
  @renewal_timeout 10_000

  # Marks a client in the dictionary of its process.
  @client_key :"$barytherium_client"

  @doc "Whether this process is a client. It is not asked, because it may be the one that waits."
  @spec client?(pid()) :: boolean()
  def client?(pid) do
    with {:dictionary, dictionary} <- Process.info(pid, :dictionary),
         do: Keyword.has_key?(dictionary, @client_key)
  end

  @spec init(map()) :: :gen_statem.init_result(atom())
  @impl true
  def init(settings) do
    # With this, `terminate/3` runs when the parent ends.
    Process.flag(:trap_exit, true)

    data = %{
      settings: settings,
      # The process that runs a consumer's callbacks; nil for a client of its own.
      handlers: nil,
      subscriptions: settings[:subscriptions] || %{},
      next_subscription: map_size(settings[:subscriptions] || %{}) + 1,
      backoff: settings.backoff,
      # The brokers that are left to try before the next wait, and the one in use.
      round: [],
      endpoint: nil,
      network: nil,
      routes: nil,
      sender: nil,
      greeter: nil,
      session: nil,
      # Why the connection is about to end, if this side knows: an ERROR frame or an atom.
      verdict: nil,
      # When the attempt to connect began and when it succeeded, in native time units.
      started: nil,
      since: nil,
      # Why the last connection, or attempt, ended, and how many attempts have failed since one succeeded.
      reason: nil,
      attempts: 0,
      # Transactions of callers, with the monitors of their processes.
      transactions: %{},
      connections: 0,
      requests: %Requests{},
      # Calls that wait for a connection, by the order in which they came:
      # `{from, action, timer}`.
      waiting: %{},
      next_waiting: 1,
      closing: nil
    }

    Process.put(@client_key, true)

    case Handlers.start(settings[:consumer]) do
      {:ok, handlers} ->
        {:ok, :disconnected, %{data | handlers: handlers}, {:next_event, :internal, :connect}}

      {:error, reason} ->
        {:stop, reason}
    end
  end

  @impl true
  def callback_mode, do: :handle_event_function

  @impl true
  # Connecting

  def handle_event(:internal, :connect, :disconnected, data), do: connect(new_round(data))

  def handle_event(:state_timeout, :connect, :disconnected, data),
    do: connect(new_round(%{data | handlers: Handlers.ensure(data.handlers)}))

  def handle_event(:cast, {:greeter, greeter, result}, :connecting, %{greeter: greeter} = data),
    do: greeted(result, data)

  def handle_event(
        :info,
        {:credentials_timeout, greeter},
        :connecting,
        %{greeter: greeter} = data
      ) do
    stop_greeter(data)
    greeted(:failed, data)
  end

  def handle_event(:cast, {:barytherium, :connect, {:ok, sender}}, :connecting, data) do
    greet(sender, data)
    {:keep_state, %{data | sender: sender}}
  end

  def handle_event(:cast, {:barytherium, :connect, {:error, reason}}, :connecting, data),
    do: ended(reason, data)

  # What arrives

  def handle_event(
        :cast,
        {:barytherium, :frames, {[%Frame{command: :connected} = frame], sender}},
        :connecting,
        %{sender: sender} = data
      ),
      do: if(offered?(frame, data), do: connected(frame, data), else: :keep_state_and_data)

  def handle_event(
        :cast,
        {:barytherium, :frames, {frames, sender}},
        state,
        %{sender: sender} = data
      ),
      do: close_if_done(state, Enum.reduce(frames, data, &control/2))

  # Endings

  def handle_event(:cast, {:barytherium, :disconnect, reason}, :closing, data),
    do: closed(reason, data)

  def handle_event(:cast, {:barytherium, :disconnect, reason}, state, data)
      when state != :disconnected,
      do: ended(reason, data)

  # The network process has crashed, so there will be no report.
  def handle_event(:info, {:EXIT, network, _reason}, state, %{network: network} = data)
      when network != nil do
    data = %{data | network: nil}
    if state == :closing, do: closed(:closed, data), else: ended(:closed, data)
  end

  # The process with the callbacks has ended. It is started again after a pause that grows, and what it has
  # not acknowledged is delivered again on the next connection.
  def handle_event(:info, {:EXIT, pid, reason}, state, %{handlers: %{pid: pid}} = data)
      when pid != nil do
    data = %{data | handlers: Handlers.ended(data.handlers)}

    case state do
      :closing -> handlers_stopped(data)
      :disconnected -> wait(data)
      _connected -> ended(Handlers.reason(reason), data)
    end
  end

  # Receipts and errors

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

  def handle_event({:call, from}, {what, timeout, wait}, state, data)
      when what in [:sender, :session],
      do: when_connected(what, from, if(wait, do: timeout), state, data)

  def handle_event({:call, from}, {{:begin, id}, timeout, wait}, state, data),
    do: when_connected({:begin, id}, from, if(wait, do: timeout), state, data)

  def handle_event(:cast, {:transaction_over, id}, _state, data),
    do: {:keep_state, transaction_over(id, data)}

  # Its process has ended in the middle of it.
  def handle_event(:info, {{:transaction, id}, _monitor, :process, _pid, _reason}, _state, data),
    do: {:keep_state, abort(id, data)}

  def handle_event(:info, {:waiting_timeout, number}, _state, data) do
    case Map.pop(data.waiting, number) do
      {nil, _waiting} ->
        :keep_state_and_data

      {{from, action, _timer}, waiting} ->
        {:keep_state, refuse(action, from, %{data | waiting: waiting})}
    end
  end

  # The subscriptions of a consumer are its options.
  def handle_event({:call, from}, call, _state, %{handlers: handlers})
      when handlers != nil and elem(call, 0) in [:subscribe, :unsubscribe],
      do: {:keep_state_and_data, {:reply, from, {:error, :consumer}}}

  def handle_event({:call, from}, {:subscribe, _, _, _}, :closing, _data),
    do: {:keep_state_and_data, {:reply, from, {:error, :disconnected}}}

  def handle_event({:call, from}, {:subscribe, subscription, pid, timeout}, state, data) do
    number = data.next_subscription
    subscription = Map.put(subscription, :number, number)
    monitor = :erlang.monitor(:process, pid, tag: {:subscriber, number})
    entry = %{subscription: subscription, pid: pid, monitor: monitor, ending: false}
    data = put_in(%{data | next_subscription: number + 1}.subscriptions[number], entry)

    if state == :connected and data.verdict == nil,
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

  def handle_event(
        {:call, from},
        {:acknowledge, command, messages, headers},
        state,
        %{verdict: nil} = data
      )
      when state in [:connected, :closing] and data.session != nil do
    reply =
      with {:ok, frames} <- Session.acknowledge(data.session, command, messages, headers),
           do: Sender.write(data.session.sender, frames)

    {:keep_state_and_data, {:reply, from, reply}}
  end

  def handle_event({:call, from}, {:acknowledge, _, _, _}, _state, _data),
    do: {:keep_state_and_data, {:reply, from, {:error, :stale}}}

  # A subscriber has ended.
  def handle_event(:info, {{:subscriber, number}, _monitor, :process, _pid, _reason}, state, data) do
    case data.subscriptions do
      %{^number => %{ending: false} = entry} ->
        {:keep_state, unsubscribe(entry, :nobody, @renewal_timeout, state, data)}

      _none ->
        :keep_state_and_data
    end
  end

  def handle_event({:call, from}, :status, state, data),
    do: {:keep_state_and_data, {:reply, from, Events.status(state, data)}}

  # Closing

  def handle_event({:call, from}, {:close, timeout}, :connected, %{verdict: nil} = data) do
    Process.send_after(self(), :close_timeout, timeout)
    data = %{data | closing: {from, Deadline.in_ms(timeout), timeout}}
    close_if_done(:closing, quiesce(timeout, data))
  end

  # A consumer is to stop: its process handles what has arrived, for `handling` milliseconds at most, and
  # then there are `farewell` milliseconds to disconnect.
  def handle_event({:call, from}, {:stop, handling, farewell}, state, data) do
    deadline = Deadline.in_ms(handling + farewell)
    Process.send_after(self(), :close_timeout, handling + farewell)
    Process.send_after(self(), :handling_timeout, handling)

    Handlers.stop_at(
      data.handlers,
      Deadline.in_ms(handling - min(div(handling, 5), @longest_callback))
    )

    data = %{data | closing: {from, deadline, farewell}}
    data = if state == :connected, do: quiesce(handling, data), else: data
    close_if_done(:closing, if(state == :connecting, do: abandon(data), else: data))
  end

  def handle_event(:info, :handling_timeout, :closing, data),
    do:
      close_if_done(
        :closing,
        fail_all(:timeout, %{data | handlers: Handlers.kill(data.handlers)})
      )

  def handle_event({:call, from}, {:close, _timeout}, :closing, _data),
    do: {:keep_state_and_data, {:reply, from, {:error, :closing}}}

  def handle_event({:call, from}, {:close, _timeout}, _state, data),
    do: {:stop_and_reply, :normal, {:reply, from, :ok}, abandon(data)}

  def handle_event(:info, :close_timeout, :closing, %{closing: {from, _, _}} = data) do
    {:stop_and_reply, :normal, {:reply, from, {:error, :timeout}}, abandon(data)}
  end

  # Reports about an earlier connection, exits of processes that have done their work, and strays.
  def handle_event(_type, _event, _state, _data), do: :keep_state_and_data

  @impl true
  def terminate(_reason, _state, data) do
    Handlers.kill(data.handlers)
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
    |> Map.replace_lazy(:data, &Map.drop(&1, [:waiting, :settings, :handlers]))
  end

  # Connecting

  # The credentials come first: a function that fetches them may take longer than a broker waits for CONNECT.
  defp connect(%{round: [endpoint | round]} = data) do
    data = %{
      data
      | endpoint: endpoint,
        round: round,
        verdict: nil,
        started: System.monotonic_time(),
        attempts: data.attempts + 1
    }

    {:next_state, :connecting, %{data | greeter: start_greeter(data)}}
  end

  defp greeted(:failed, data), do: ended(:credentials, data)

  defp greeted(:ready, %{endpoint: %{host: host, port: port, opts: opts}} = data) do
    routes = Native.new_routes()
    {:ok, network} = Network.start_link(self(), host, port, opts.(), routes)
    {:keep_state, %{data | network: network, routes: routes}}
  end

  # The network process ends the connection otherwise, and says why.
  defp offered?(frame, data),
    do: String.trim(Frame.announced_version(frame)) in data.settings.versions

  defp connected(frame, data) do
    {ending, subscriptions} = data.subscriptions |> Map.values() |> Enum.split_with(& &1.ending)
    data = Enum.reduce(ending, data, &forget(&1.subscription.number, &2))
    subscriptions = subscriptions |> Enum.map(& &1.subscription) |> Enum.sort_by(& &1.number)
    waiting = Enum.sort(data.waiting)

    data = %{
      data
      | session: Session.new(data.sender, frame),
        connections: data.connections + 1,
        since: System.monotonic_time(),
        attempts: 0,
        waiting: %{}
    }

    # With this the process with the callbacks knows all of them before the first message can come.
    {_frames, known} = Enum.map_reduce(subscriptions, data.session, &Session.subscribe(&2, &1))
    Handlers.session(data.handlers, known)
    Events.connected(frame, data)

    data =
      Enum.reduce(
        subscriptions,
        data,
        &write_subscribe(&1, {:renewal, &1}, @renewal_timeout, &2)
      )

    {:next_state, :connected, Enum.reduce(waiting, data, &stop_waiting/2)}
  end

  defp stop_waiting({_number, {{pid, _tag} = from, action, timer}}, data) do
    Process.cancel_timer(timer)
    # Nobody would hear of it.
    if node(pid) == node() and not Process.alive?(pid),
      do: data,
      else: perform(action, from, data)
  end

  # Endings

  defp ended(reason, data) do
    reason = data.verdict || reason
    lasted = data.since && System.monotonic_time() - data.since
    # A broker that does not even take the subscriptions is as good as one that cannot be reached.
    worked? = lasted != nil and not renewing?(data)
    data = release(%{data | reason: reason})

    if lasted,
      do: Events.disconnected(reason, lasted, data),
      else: Events.connection_failure(reason, data)

    go_on(if(worked?, do: lasted), data)
  end

  defp go_on(_lasted, %{handlers: %{pid: nil}} = data), do: wait(reset(data))

  # The next broker is tried at once if this one could not be reached.
  defp go_on(nil, %{round: [_ | _]} = data), do: connect(reset(data))

  defp go_on(nil, %{attempts: attempts, settings: %{max_attempts: most}} = data)
       when attempts >= most,
       do: {:stop, {:shutdown, {:max_attempts, Events.brief(data.reason)}}, reset(data)}

  defp go_on(lasted, data) do
    {wait, backoff} = data.backoff |> reset_backoff(lasted) |> Backoff.next()

    {:next_state, :disconnected, %{reset(data) | backoff: backoff},
     {:state_timeout, wait, :connect}}
  end

  # Until the process with the callbacks is started again.
  defp wait(data) do
    {wait, handlers} = Handlers.pause(data.handlers)
    {:next_state, :disconnected, %{data | handlers: handlers}, {:state_timeout, wait, :connect}}
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
    for {_id, monitor} <- data.transactions, do: Process.demonitor(monitor, [:flush])
    fail_all(:unconfirmed, %{data | transactions: %{}})
  end

  defp reset(data),
    do: %{data | network: nil, routes: nil, sender: nil, greeter: nil, session: nil, since: nil}

  # When the broker has answered everything, a consumer's process handles what has arrived until then. When
  # that is done, the DISCONNECT is written.
  defp close_if_done(state, %{closing: {_from, deadline, farewell}} = data)
       when state in [:connected, :closing] do
    cond do
      not Requests.none?(data.requests) ->
        {:next_state, :closing, data}

      Handlers.running?(data.handlers) ->
        {:next_state, :closing, %{data | handlers: Handlers.finish(data.handlers, data.network)}}

      data.network == nil or data.session == nil ->
        closed(:closed, data)

      true ->
        close_network(data.network, min(Deadline.left(deadline), farewell))
        {:next_state, :closing, data}
    end
  end

  defp close_if_done(_state, data), do: {:keep_state, data}

  defp not_written(reason) when reason in [:timeout, :unescapable], do: reason
  defp not_written(_connection_has_ended), do: :unconfirmed

  defp handlers_stopped(data), do: close_if_done(:closing, data)

  # The connection has ended while the consumer's process still handles what has arrived.
  defp closed(reason, %{handlers: handlers} = data)
       when handlers != nil and handlers.pid != nil do
    data = fail_all(:unconfirmed, release(%{data | reason: reason}))
    close_if_done(:closing, reset(data))
  end

  # The network closes at the deadline too, and what was not written by then is lost.
  defp closed(reason, %{closing: {from, deadline, _farewell}} = data) do
    reply =
      cond do
        Deadline.left(deadline) == 0 -> {:error, :timeout}
        Requests.none?(data.requests) -> :ok
        true -> {:error, reason}
      end

    data = release(%{data | reason: reason})
    if data.since, do: Events.closed(reason, System.monotonic_time() - data.since, data)
    {:stop_and_reply, :normal, {:reply, from, reply}, reset(data)}
  end

  # Requests

  # `wait`: how long to wait for a connection, or nil.
  # When its end is decided, nothing more is written on a connection.
  defp when_connected(action, from, _wait, :connected, %{verdict: nil} = data),
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
