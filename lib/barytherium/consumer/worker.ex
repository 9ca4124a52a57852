defmodule Barytherium.Consumer.Worker do
  @moduledoc false
  # One process of a consumer. It is the delivery process of its client (see
  # `Barytherium.Client.Delivery`), which it owns.
  use GenServer

  alias Barytherium.Client
  alias Barytherium.Client.Delivery
  alias Barytherium.Connection.Deadline
  alias Barytherium.Consumer.Handler
  alias Barytherium.Frame

  # The part of the option `:shutdown` that disconnecting may take, and its maximum in milliseconds. The
  # rest is for messages.
  @farewell_part 4
  @longest_farewell 5_000

  # Milliseconds before the supervisor would kill the process.
  @margin 200

  @client_key :"$barytherium_client"

  @spec start_link((... -> map())) :: GenServer.on_start()
  def start_link(settings), do: GenServer.start_link(__MODULE__, settings)

  @doc "The client of a worker. It is found without asking the worker, which may be busy."
  @spec client(pid()) :: nil | pid()
  def client(worker) do
    with {:dictionary, dictionary} <- Process.info(worker, :dictionary),
         do: Keyword.get(dictionary, @client_key)
  end

  @impl true
  def init(settings) do
    %{module: module} = settings = settings.()
    # With this, `terminate/2` runs when the supervisor stops this process.
    Process.flag(:trap_exit, true)

    with {:ok, user_state} <- first_state(module, settings.init_arg) do
      {:ok, client} = Client.start_server(nil, Map.put(settings.client, :delivery, self()))
      Process.put(@client_key, client)

      handler = %Handler{
        module: module,
        state: user_state,
        client: client,
        on_exception: settings.on_exception,
        nack_headers: settings.nack_headers,
        parent: parent(),
        stop_timeout: max(settings.shutdown - farewell(settings) - @margin, 0)
      }

      {:ok, %{client: client, handler: handler, shutdown: settings.shutdown}}
    end
  end

  defp first_state(module, arg) do
    if function_exported?(module, :init, 1), do: module.init(arg), else: {:ok, arg}
  end

  defp parent do
    [parent | _more] = Process.get(:"$ancestors")
    if is_atom(parent), do: Process.whereis(parent), else: parent
  end

  @impl true
  def handle_cast({:barytherium, :connect, result}, state) do
    Delivery.connect(state.client, result)
    {:noreply, state}
  end

  def handle_cast({:barytherium, :frames, {frames, sender}}, state) do
    case frames(frames, sender, state) do
      {:ok, state} -> {:noreply, state}
      {:stop, state} -> {:stop, {:shutdown, :exception}, state}
    end
  end

  def handle_cast({:barytherium, :disconnect, reason}, state) do
    Delivery.disconnect(state.client, reason)
    {:noreply, state}
  end

  def handle_cast({:client, {:connected, info}}, state),
    do: {:noreply, event(:handle_connected, info, state)}

  def handle_cast({:client, {event, reason}}, state)
      when event in [:disconnected, :connection_failure],
      do: {:noreply, event(:handle_disconnected, reason, state)}

  def handle_cast({:client, _event}, state), do: {:noreply, state}
  def handle_cast(stray, state), do: {:noreply, event(:handle_info, stray, state)}

  @impl true
  def handle_info({:EXIT, client, reason}, %{client: client} = state),
    do: {:stop, reason, %{state | client: nil}}

  def handle_info(message, state), do: {:noreply, event(:handle_info, message, state)}

  @impl true
  def handle_call(_stray, _from, state), do: {:noreply, state}

  @doc false
  # The message may hold bodies.
  # A callback of GenServer since Elixir 1.17. OTP has called it before.
  @impl {:format_status, 1} in GenServer.behaviour_info(:callbacks)
  def format_status(status), do: status |> Map.replace(:message, "...") |> Map.replace(:log, [])

  defp event(callback, argument, %{handler: handler} = state) do
    if function_exported?(handler.module, callback, 2) do
      {:ok, user_state} = apply(handler.module, callback, [argument, handler.state])
      %{state | handler: %{handler | state: user_state}}
    else
      state
    end
  end

  defp frames([%Frame{command: :connected} = frame], sender, %{handler: handler} = state) do
    case Delivery.connected(state.client, sender, frame) do
      {:ok, session} -> {:ok, %{state | handler: Handler.connected(handler, session)}}
      :error -> {:ok, state}
    end
  end

  defp frames(frames, sender, state) do
    {messages, control} = split(frames)
    {next, handler} = Handler.handle(state.handler, messages, sender)
    state = %{state | handler: handler}
    errors = Enum.filter(control, &(&1.command == :error))
    state = Enum.reduce(errors, state, &event(:handle_error, &1, &2))
    Delivery.control(state.client, sender, control)
    {next, state}
  end

  # Most lists are all messages, and are not copied.
  defp split(frames) do
    if Enum.all?(frames, &(&1.command == :message)),
      do: {frames, []},
      else: Enum.split_with(frames, &(&1.command == :message))
  end

  @impl true
  def terminate(reason, %{handler: handler, client: client} = state) do
    state = if client && orderly?(reason), do: drain(state), else: state

    if function_exported?(handler.module, :terminate, 2),
      do: handler.module.terminate(reason, state.handler.state)

    if client, do: close(state)
  end

  # After an exception the messages that are left are delivered again.
  defp orderly?({:shutdown, :exception}), do: false
  defp orderly?({:shutdown, _reason}), do: true
  defp orderly?(reason), do: reason in [:normal, :shutdown]

  # Handles what has arrived. Subscriptions that need no acknowledgement end before, so that nothing of
  # them is lost. The others do not, because a broker takes no acknowledgement after UNSUBSCRIBE.
  defp drain(state) do
    %{deadline: deadline} = handler = Handler.stop_soon(state.handler)
    state = %{state | handler: handler}
    timeout = Deadline.left(deadline)
    quiesce = fn client -> :gen_statem.call(client, {:quiesce, timeout}, :infinity) end

    with {:ok, state} <- await(quiesce, state, deadline, &frames/3) do
      mark = make_ref()
      send(self(), mark)
      {_end, state} = handle_until(mark, state, deadline, &frames/3)
      state
    else
      {_timeout, state} -> state
    end
  end

  # Messages that come now are left to the broker. They have to be taken out of the mailbox, because
  # otherwise reading would stop, and with it the broker's answer would not come.
  defp close(state) do
    timeout = farewell(state)
    await(&Client.close(&1, timeout), state, Deadline.in_ms(timeout), &control/3)
  end

  defp farewell(state), do: min(div(state.shutdown, @farewell_part), @longest_farewell)

  defp control(frames, sender, state) do
    control = Enum.filter(frames, &(&1.command in [:receipt, :error]))
    Delivery.control(state.client, sender, control)
    {:ok, state}
  end

  # Calls the client in a process of its own, and handles frames until the answer.
  defp await(call, %{client: client} = state, deadline, handle) do
    {_pid, monitor} = spawn_monitor(fn -> call(call, client) end)
    handle_until(monitor, state, deadline, handle)
  end

  defp call(call, client) do
    call.(client)
  catch
    # The client has ended.
    :exit, _reason -> :ok
  end

  defp handle_until(mark, state, deadline, handle) do
    receive do
      {:"$gen_cast", {:barytherium, :frames, {frames, sender}}} ->
        with {:ok, state} <- handle.(frames, sender, state),
             do: handle_until(mark, state, deadline, handle)

      {:"$gen_cast", {:barytherium, :disconnect, reason}} ->
        Delivery.disconnect(state.client, reason)
        handle_until(mark, state, deadline, handle)

      {:DOWN, ^mark, :process, _pid, _reason} ->
        {:ok, state}

      ^mark ->
        {:ok, state}
    after
      Deadline.left(deadline) -> {:timeout, state}
    end
  end
end
