defmodule BarytheriumPage do
  @moduledoc """
  A page of Phoenix LiveDashboard (0.8): the feeds of clients and consumers, and whether they are well.

      live_dashboard "/dashboard",
        additional_pages: [
          stomp: {BarytheriumPage, clients: [MyApp.Stomp], consumers: [MyApp.Trains]}
        ]

  These are the names by which they are registered. On another node the page asks those of that node.
  """
  use Phoenix.LiveDashboard.PageBuilder

  alias Barytherium.{Client, Consumer, Histogram}

  @numbers [:messages, :bytes, :idle, :lag, :gaps, :missing, :repeats]

  @impl true
  def init(opts) do
    session = %{clients: Keyword.get(opts, :clients, []), consumers: opts[:consumers] || []}
    {:ok, session, application: :barytherium}
  end

  @impl true
  def menu_link(_session, %{applications: [:barytherium]}), do: {:ok, "STOMP"}
  def menu_link(_session, _not_running), do: :skip

  @impl true
  def mount(_params, session, socket), do: {:ok, assign(socket, session: session)}

  @impl true
  def render(assigns) do
    ~H"""
    <.live_table
      id="barytherium-feeds"
      dom_id="barytherium-feeds"
      page={@page}
      title="STOMP feeds"
      rows_name="feeds"
      search={false}
      row_fetcher={fn params, node -> fetch(@session, params, node) end}
    >
      <:col field={:name} header="Client" sortable={:asc} />
      <:col field={:destination} sortable={:asc} />
      <:col field={:health} />
      <:col field={:messages} text_align="right" sortable={:desc} />
      <:col field={:bytes} text_align="right" sortable={:desc} />
      <:col field={:idle} header="Idle, ms" text_align="right" sortable={:desc} />
      <:col field={:lag} header="Lag, ms" text_align="right" sortable={:desc} />
      <:col field={:gaps} text_align="right" sortable={:desc} />
      <:col field={:missing} text_align="right" sortable={:desc} />
      <:col field={:repeats} text_align="right" sortable={:desc} />
      <:col field={:to_start} header="To callback, us: median, 99 %" text_align="right" />
      <:col field={:to_ack} header="To ack, us: median, 99 %" text_align="right" />
    </.live_table>
    """
  end

  @doc "The rows of the table, and how many there are."
  def fetch(session, %{sort_by: by, sort_dir: direction, limit: limit}, node) do
    rows = rows(session, node)
    {rows |> Enum.sort_by(& &1[by], direction) |> Enum.take(limit), length(rows)}
  end

  defp rows(%{clients: clients, consumers: consumers}, node) do
    of_clients = for name <- clients, do: {name, {name, node}}

    of_consumers =
      for name <- consumers,
          client <- ask(fn -> Consumer.clients({name, node}) end),
          do: {name, client}

    for {name, client} <- of_clients ++ of_consumers,
        feed <- ask(fn -> Client.feeds(client) end),
        do: row(name, feed, client)
  end

  defp row(name, feed, client) do
    feed
    |> Map.take([:destination | @numbers])
    |> Map.merge(%{
      name: inspect(name),
      health: ask(fn -> health(Client.health(client), feed.destination) end),
      to_start: delay(feed.to_start),
      to_ack: delay(feed.to_ack)
    })
  end

  # What is wrong with the client, and with this destination.
  defp health(:ok, _destination), do: "well"

  defp health({:error, problems}, destination) do
    mine =
      Enum.filter(
        problems,
        &(not is_tuple(&1) or elem(&1, 1) == destination or elem(&1, 0) == :not_handled)
      )

    if mine == [], do: "well", else: Enum.map_join(mine, ", ", &text/1)
  end

  defp text(:not_connected), do: "not connected"
  defp text({:not_subscribed, _destination}), do: "not subscribed"
  defp text({:not_handled, time}), do: "not handled for #{time} ms"
  defp text({what, _destination, time}), do: "#{what} for #{time} ms"

  defp delay(none) when none in [nil, []], do: nil
  defp delay(histogram), do: Enum.map_join([0.5, 0.99], ", ", &Histogram.quantile(histogram, &1))

  # Whoever is not there has no rows.
  defp ask(question) do
    question.()
  catch
    :exit, _reason -> []
  end
end
