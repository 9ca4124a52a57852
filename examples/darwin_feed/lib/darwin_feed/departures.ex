defmodule DarwinFeed.Departures do
  @moduledoc "Finds the departures in a message of Darwin's push port."

  @type departure :: %{train: String.t(), station: String.t(), time: String.t()}

  # The SAX parser makes no atoms from names in the XML, which `:xmerl_scan` does.
  @spec parse(binary()) :: [departure()]
  def parse(xml) do
    options = [event_fun: &event/3, event_state: {nil, nil, []}]
    {:ok, {_train, _station, departures}, _rest} = :xmerl_sax_parser.stream(xml, options)
    Enum.reverse(departures)
  end

  # A TS is the status of a train. It has a Location for each station, with a `dep` if the train leaves it.
  defp event({:startElement, _uri, ~c"TS", _name, attributes}, _line, {_train, _station, found}),
    do: {attribute(attributes, ~c"uid"), nil, found}

  defp event({:startElement, _uri, ~c"Location", _name, attributes}, _line, {train, _, found}),
    do: {train, attribute(attributes, ~c"tpl"), found}

  defp event({:startElement, _uri, ~c"dep", _name, attributes}, _line, {train, station, found}) do
    # The actual time, or the expected one.
    time = attribute(attributes, ~c"at") || attribute(attributes, ~c"et")
    {train, station, [%{train: train, station: station, time: time} | found]}
  end

  defp event(_other, _line, state), do: state

  defp attribute(attributes, name) do
    with {_uri, _prefix, _name, value} <- List.keyfind(attributes, name, 2),
         do: to_string(value)
  end
end
